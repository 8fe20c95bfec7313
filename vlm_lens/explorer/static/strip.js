// A strip of bars.

// Draws the neurons from `first` to `last` of an order; where there are more than pixels, each
// column shows the largest magnitude among those that share it.
class Strip {
  constructor(canvas, choose, hint) {
    this.canvas = canvas;
    this.order = [];
    canvas.addEventListener("click", (event) => {
      const rank = this.rankAt(event);
      if (rank != null) choose(this.order[rank]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const rank = this.rankAt(event);
      if (rank != null) hint(this.order[rank]);
    });
    canvas.addEventListener("pointerleave", () => hint(null));
  }

  draw({ order, values, first = 0, last = order.length, chosen, kept, ink }) {
    Object.assign(this, { order, values, first, last });
    const ratio = devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    const height = this.canvas.clientHeight;
    if (!width || !height) return;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const room = height - 12; // the mark of the chosen neuron is above the bars
    const { high, low } = limits(order.slice(first, last).map((place) => values[place]));
    const unit = room / (high - low || 1);
    const zero = 10 + high * unit;
    this.columns = Math.max(1, Math.min(Math.floor(width), last - first));
    const step = width / this.columns;
    for (let column = 0; column < this.columns; column++) {
      const value = values[order[this.peak(column)]];
      if (!Number.isFinite(value)) continue;
      context.fillStyle = `rgb(${(value < 0 ? NEGATIVE : POSITIVE).join(",")})`;
      const size = Math.max(Math.abs(value) * unit, 0.5);
      const gap = step > 3 ? 1 : 0;
      context.fillRect(column * step, value < 0 ? zero : zero - size, step - gap, size);
    }
    context.fillStyle = ink;
    context.globalAlpha = 0.35;
    context.fillRect(0, zero, width, 1);
    context.globalAlpha = 1;
    for (let rank = first; rank < last; rank++) {
      const x = ((rank - first + 0.5) * width) / (last - first);
      if (kept.has(order[rank])) context.fillRect(x - 1.5, height - 3, 3, 3);
      if (order[rank] !== chosen) continue;
      context.beginPath();
      context.moveTo(x - 5, 0);
      context.lineTo(x + 5, 0);
      context.lineTo(x, 8);
      context.fill();
      context.fillRect(x - 0.5, 0, 1, height);
    }
  }

  // The rank of the largest magnitude in a column.
  peak(column) {
    const n = this.last - this.first;
    const start = this.first + Math.floor((column * n) / this.columns);
    const end = Math.max(start + 1, this.first + Math.floor(((column + 1) * n) / this.columns));
    let best = start;
    for (let rank = start + 1; rank < end; rank++) {
      if (Math.abs(this.values[this.order[rank]]) > Math.abs(this.values[this.order[best]])) {
        best = rank;
      }
    }
    return best;
  }

  rankAt(event) {
    if (!this.order.length || !this.columns) return null;
    const { left, width } = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - left) / width) * this.columns);
    return this.peak(Math.max(0, Math.min(this.columns - 1, column)));
  }
}
