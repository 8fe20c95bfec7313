// The image and the words, in the colours of one neuron and linked to each other.

class Scene {
  // What `open` does is up to the page: it is called with the entry that was clicked.
  constructor(about, open) {
    this.about = about;
    this.hint = h("p", { class: "vx-hint", role: "status" }, "");
    this.see = h("div", { class: "vx-see" });
    this.read = h("div", { class: "vx-read" });
    this.open = (mark) => this.pick(mark, open);
    const handle = (action) => (event) => {
      const entry = event.target.closest("[data-entry]")?.dataset.entry;
      if (entry != null) action(Number(entry));
    };
    for (const part of [this.see, this.read]) {
      // What was picked is still pointed at when the page around it has moved.
      const point = handle((entry) => entry !== this.picked && this.point(entry));
      part.addEventListener("pointerover", point);
      part.addEventListener("focusin", point);
      part.addEventListener("click", handle(this.open));
      part.addEventListener("pointerleave", () => this.point(null));
      part.addEventListener("keydown", (event) => this.walk(event));
    }
  }

  use(key) {
    const space = this.about.spaces[key];
    const { patches, buffers } = this.about;
    this.spread = patches?.at && space.query ? new Spread(patches, buffers[0], space) : null;
    this.space = { key, ...(this.spread?.extended(space) ?? space), n: space.at.length };
    this.marks = this.space.image.map(() => []);
    this.attending = false;
    this.level = 0;
    this.see.replaceChildren(...this.pictures());
    this.see.hidden = !this.see.childNodes.length;
    this.read.replaceChildren(...this.words(), this.hint);
  }

  pictures() {
    const { space } = this;
    const levels = Math.max(...space.level) + 1;
    const shown = this.about.images.flatMap((image, number) => {
      const entries = space.image.flatMap((of, i) => (of === number && space.box[i] ? [i] : []));
      return entries.length || space.kind !== "decoder tokens" ? [this.picture(image, number, entries)] : [];
    });
    if (!shown.length) return [];
    const original = h("input", {
      type: "checkbox",
      onchange: (event) => this.see.classList.toggle("vx-original", event.target.checked),
    });
    original.checked = this.see.classList.contains("vx-original");
    const tools = [h("label", { class: "vx-check" }, original, "original colours")];
    if (levels > 1) {
      const names = Array.from({ length: levels }, (_, i) =>
        i === 0 ? "finest patches" : i === levels - 1 ? "whole picture" : `level ${i + 1}`,
      );
      const change = (event) => this.useLevel(Number(event.target.value));
      const options = names.map((name, i) => h("option", { value: i }, name));
      tools.push(h("label", {}, "patches", h("select", { "aria-label": "patches", onchange: change }, options)));
    }
    this.legend = h("div", { class: "vx-legend" });
    this.attention = this.spread && h("div", { class: "vx-legend vx-attention" });
    this.alternative = h("p", { class: "vx-muted" });
    return [...shown, this.legend, this.attention, this.alternative, h("div", { class: "vx-row" }, tools)].filter(Boolean);
  }

  picture(image, number, entries) {
    const { space } = this;
    const cells = entries.map((i) => {
      const [x0, y0, x1, y1] = space.box[i];
      const cell = s("rect", {
        x: x0, y: y0, width: x1 - x0, height: y1 - y0,
        class: "vx-patch", role: "button", tabindex: -1, "data-entry": i,
        ...(space.level[i] === 0 ? {} : { visibility: "hidden" }),
      });
      this.marks[i].push(cell);
      return cell;
    });
    cells.find((cell) => !cell.hasAttribute("visibility"))?.setAttribute("tabindex", 0);
    const edges = { class: "vx-outline", visibility: "hidden", "data-image": number };
    const size = { width: image.width, height: image.height };
    const coarse = Math.max(image.width, image.height) < 200 ? " vx-coarse" : "";
    return s(
      "svg",
      {
        viewBox: `0 0 ${image.width} ${image.height}`, class: `vx-picture${coarse}`, role: "group",
        "aria-label": `image ${number + 1}, ${entries.length} patches`,
        style: `aspect-ratio:${image.width}/${image.height}`,
      },
      s("image", { href: image.uri, ...size, preserveAspectRatio: "none" }),
      s("g", {}, cells),
      s("rect", edges),
      s("rect", { ...edges, class: "vx-outline vx-inner" }),
    );
  }

  useLevel(level) {
    this.level = level;
    for (const cell of this.see.querySelectorAll(".vx-patch")) {
      const seen = this.space.level[cell.dataset.entry] === level;
      cell.setAttribute("visibility", seen ? "visible" : "hidden");
      cell.setAttribute("tabindex", -1);
    }
    this.see.querySelector('.vx-patch[visibility="visible"]')?.setAttribute("tabindex", 0);
    this.summarise();
  }

  words() {
    const { space } = this;
    const parts = [];
    let [role, run] = [null, null]; // pieces of images that follow each other lie side by side
    for (let i = 0; i < space.n; i++) {
      if (space.role[i] !== role) {
        role = space.role[i];
        const name = role === "a" ? "answer" : space.kind.includes("tokens") ? "prompt" : space.kind;
        parts.push(h("div", { class: "vx-chips", role: "group", "aria-label": name }, h("h3", {}, name)));
        run = null;
      }
      const chip = this.chip(i);
      if (!chip.classList.contains("vx-cell")) {
        parts.at(-1).append(chip);
        run = null;
        continue;
      }
      if (!run) parts.at(-1).append((run = h("span", { class: "vx-run" })));
      run.append(chip);
    }
    if (space.note) parts.push(h("p", { class: "vx-muted" }, space.note));
    return parts;
  }

  // A token is its text, a piece of an image a small square, or round if it has no place.
  chip(i) {
    const { space } = this;
    const small = "ia".includes(space.modality[i]) && space.labels[i] !== "class";
    const chip = h(
      "span",
      {
        class: small ? `vx-cell${space.box[i] ? "" : " vx-placeless"}` : "vx-chip",
        role: "button", tabindex: i ? -1 : 0, "data-entry": i,
      },
      small ? "" : visible(space.labels[i]),
    );
    this.marks[i].push(chip);
    return chip;
  }

  what(i) {
    const { space } = this;
    const [row, column] = space.cell[i];
    const patch = `patch in row ${row}, column ${column}`;
    if (i >= space.n) return patch;
    const modality = MODALITIES[space.modality[i]];
    const nowhere = `${modality} ${visible(space.labels[i])}${modality === "image" ? ", without a place" : ""}`;
    return `${this.which(i)}, ${row < 0 ? nowhere : patch}`;
  }

  which(i) {
    return `${this.space.kind.includes("tokens") ? "position" : "entry"} ${this.space.at[i]}`;
  }

  // What queries hand to patches is smaller than what they have, and gets colours of its own.
  paint(neuron) {
    const [values] = neuron.buffers;
    const { spread, space } = this;
    const error = neuron.error ?? 0;
    this.values = spread ? spread.values(values) : values;
    const handed = spread && limits(this.values.subarray(space.n));
    this.limit = spread ? Math.max(handed.high, -handed.low) : neuron.limit;
    this.error = spread && error ? spread.error(error) : error;
    this.own = neuron.limit;
    this.attending = false;
    this.marks.forEach((marks, i) => {
      const colour = tint(this.values[i], i < space.n ? this.own : this.limit);
      const label = `${this.what(i)}: ${show(this.values[i])}`;
      for (const mark of marks) {
        if (mark.classList.contains("vx-patch")) mark.style.fill = colour;
        else mark.style.backgroundColor = colour;
        mark.setAttribute("aria-label", label);
      }
    });
    this.drawLegend();
    this.summarise();
    this.point(null);
  }

  drawLegend() {
    if (!this.legend) return;
    const inPicture = this.spread ? this.values.subarray(this.space.n) : this.values;
    const low = inPicture.some((value) => value < 0) ? -this.limit : 0;
    const spread = this.spread
      ? `: queries have no place, so it is spread as they attend to patches (${this.spread.patches.label}). ` +
        `Marks and words: up to ${show(this.own)}`
      : "";
    const off = this.error ? `, each off by at most ${show(this.error)}` : "";
    this.legend.replaceChildren(...legend(low, show(this.limit), `activation${off}${spread}`));
    this.drawAttention("most");
  }

  drawAttention(most) {
    const label = "attention of the query that is pointed at";
    this.attention?.replaceChildren(...legend(0, most, label, ATTENTION));
  }

  // The picture in words.
  summarise() {
    const { space, values } = this;
    if (!this.alternative || !values) return;
    const seen = space.box.flatMap((box, i) => (box && space.level[i] === this.level ? [i] : []));
    if (!seen.length) {
      const none = space.note || "No position here has a place in the image.";
      this.alternative.textContent = [none, this.about.patches?.note].filter(Boolean).join(" ");
      return;
    }
    const best = seen.reduce((a, b) => (values[b] > values[a] ? b : a));
    const half = seen.filter((i) => values[best] > 0 && values[i] >= values[best] / 2).length;
    const [row, column] = space.cell[best];
    this.alternative.textContent =
      `Largest over the image: ${show(values[best])}, row ${row}, column ${column}; ` +
      `${half} of ${seen.length} patches are at least half as active.`;
  }

  // Linked ---------------------------------------------------------------------------------------

  point(entry) {
    this.picked = null;
    this.marks.flat().forEach((mark) => mark.classList.remove("vx-linked"));
    for (const outline of this.see.querySelectorAll(".vx-outline")) {
      const box = entry == null ? null : this.space.box[entry];
      const seen = box && this.space.image[entry] === Number(outline.dataset.image);
      outline.setAttribute("visibility", seen ? "visible" : "hidden");
      if (!seen) continue;
      const [x0, y0, x1, y1] = box;
      const edges = { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
      Object.entries(edges).forEach(([key, value]) => outline.setAttribute(key, value));
    }
    this.attend(entry);
    if (entry == null) {
      this.say("Point at a patch or a token to see which belong together; click it for its neurons.");
      return;
    }
    const reader = this.readerOf(entry);
    const linked = [...this.marks[entry], ...(reader ? this.marks[reader.entry] : [])];
    linked.forEach((mark) => mark.classList.add("vx-linked"));
    this.say(`${this.what(entry)}: ${show(this.values?.[entry])}${this.attended(entry, reader)}`);
  }

  // Who attends to a patch most, or how much of a query's attention patches get.
  attended(entry, reader) {
    if (reader) {
      return `; ${this.which(reader.entry)} attends to it most, with ${percent(reader.weight)} of its attention`;
    }
    const weights = this.spread?.attention(entry);
    return weights ? `; patches get ${percent(weights.reduce((a, b) => a + b))} of its attention` : "";
  }

  readerOf(entry) {
    return entry < this.space.n ? null : this.spread.reader(entry - this.space.n);
  }

  // The patches in the colours of what a query attends to, else again in those of the neuron.
  attend(entry) {
    const weights = entry == null ? null : (this.spread?.attention(entry) ?? null);
    if (!weights && !this.attending) return;
    this.attending = weights != null;
    const most = weights ? Math.max(...weights) : 0;
    for (const patch of this.spread.of) {
      const i = this.space.n + patch;
      const colour = weights ? tint(weights[patch], most, ATTENTION) : tint(this.values[i], this.limit);
      for (const mark of this.marks[i]) mark.style.fill = colour;
    }
    this.drawAttention(weights ? percent(most) : "most");
  }

  // A patch that queries attend to stands for the one that does so most.
  pick(entry, open) {
    const reader = this.readerOf(entry);
    open(reader?.entry ?? entry);
    if (!reader) return;
    this.point(reader.entry);
    this.picked = entry;
  }

  say(text) {
    this.hint.textContent = text;
  }

  walk(event) {
    const from = event.target.closest("[data-entry]");
    if (!from) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.open(Number(from.dataset.entry));
      return;
    }
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const group = [...from.closest("svg, .vx-read").querySelectorAll("[data-entry]")].filter(
      (mark) => mark.getAttribute("visibility") !== "hidden",
    );
    const ends = { Home: group[0], End: group.at(-1) };
    const to = ends[event.key] ?? (event.key in ways ? nearest(from, group, ways[event.key]) : null);
    if (!to) return;
    event.preventDefault();
    group.forEach((mark) => mark.setAttribute("tabindex", mark === to ? 0 : -1));
    to.focus();
  }
}
