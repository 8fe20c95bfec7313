// The neuron explorer's page. One module, used twice: by the widget, whose kernel answers, and by
// the stand-alone page, whose own data does. It asks a *source* and never anything else:
//   ask("about"), ask("layer", {name}), ask("neuron", {name, index}),
//   ask("position", {name, entry}), ask("ablate", {neurons})
// and it shows text from models and data as text only, never as HTML.

const SORTS = {
  largest: "largest activation",
  selectivity: "image against text",
  effect: "effect on the answer",
  index: "number",
};
const SUMMARIES = {
  largest: "largest",
  image: "mean over image",
  text: "mean over text",
  selectivity: "image against text",
  effect: "effect",
};
const LENS = 40; // neurons on each side of the chosen one, where a layer has more than fit

class Page {
  constructor(el, source) {
    this.source = source;
    this.turn = 0;
    this.sort = "largest";
    // JupyterLab would take the keys for shortcuts of its own.
    this.root = h("div", { class: "vx", "data-lm-suppress-shortcuts": "true" });
    el.append(this.root);
    this.stops = [];
    this.watchTheme();
    this.listen(source.onChange(() => this.changed()));
  }

  listen(stop) {
    this.stops.push(stop);
  }

  close() {
    this.stops.forEach((stop) => stop());
    this.root.remove();
  }

  watchTheme() {
    const follow = () => {
      this.root.dataset.theme = isDark() ? "dark" : "light";
      this.drawStrip?.();
    };
    const query = matchMedia("(prefers-color-scheme: dark)");
    const watch = new MutationObserver(follow);
    watch.observe(document.body, { attributes: true });
    query.addEventListener("change", follow);
    this.listen(() => query.removeEventListener("change", follow));
    this.listen(() => watch.disconnect());
    follow();
  }

  async start() {
    this.root.append(h("p", { class: "vx-muted" }, "Waiting for an answer from the kernel …"));
    try {
      this.about = await this.source.ask("about");
      this.points = new Map(this.about.points.map((point) => [point.name, point]));
      this.build();
      await this.changed();
    } catch (error) {
      this.root.replaceChildren(h("p", { role: "alert" }, error.message));
    }
    this.root.dataset.ready = "true";
  }

  build() {
    const { about } = this;
    this.scene = new Scene(about, (entry) => this.open(entry));
    this.here = h("section", { class: "vx-panel", "aria-label": "most active neurons" });
    this.facts = h("section", { class: "vx-panel", "aria-label": "what is known" });
    this.cards = h("section", { class: "vx-panel", "aria-label": "top samples" });
    this.without = h("section", { class: "vx-panel", "aria-label": "answers", "aria-live": "polite" });
    const side = (...parts) => h("div", { class: "vx-side" }, parts);
    const note = (key) => (this.source[key] ? [h("p", { class: "vx-note" }, this.source[key])] : []);
    this.root.replaceChildren(
      ...note("notice"),
      this.header(),
      this.stripPanel(),
      h(
        "div",
        { class: "vx-main" },
        side(this.scene.see, this.without),
        side(this.scene.read, h("div", { class: "vx-panels" }, this.here, this.facts)),
      ),
      this.cards,
      ...note("note"),
    );
    drawAnswer(this.without, about);
    emptyHere(this.here);
    const resize = new ResizeObserver(() => this.drawStrip());
    resize.observe(this.strip.canvas);
    this.listen(() => resize.disconnect());
  }

  // Choosing -------------------------------------------------------------------------------------

  header() {
    const select = (label, change) => h("select", { "aria-label": label, onchange: change });
    this.component = select("component", () => this.pick());
    this.block = select("layer", () => this.pick());
    this.site = select("site", () => this.pick());
    const choose = () => this.choose([this.current[0], Number(this.number.value)]);
    this.number = h("input", {
      type: "number",
      min: 0,
      "aria-label": "neuron",
      onchange: choose,
      // JupyterLab keeps Enter from doing what it does elsewhere.
      onkeydown: (event) => event.key === "Enter" && choose(),
    });
    this.count = h("span", { class: "vx-muted" });
    this.keepButton = h("button", { type: "button", onclick: () => this.keep(this.current) }, "Keep");
    this.ablateButton = h(
      "button",
      { type: "button", onclick: () => this.ablate([this.current]) },
      "Ablate",
    );
    this.keptList = h("div", { class: "vx-kept", "aria-label": "kept neurons", role: "group" });
    const names = [...new Set(this.about.points.map((point) => point.component))];
    this.component.append(...names.map((name) => h("option", { value: name }, name.replaceAll("_", " "))));
    return h(
      "header",
      { class: "vx-bar" },
      h("label", {}, "component", this.component),
      h("label", {}, "layer", this.block),
      h("label", {}, "site", this.site),
      h("label", {}, "neuron", h("span", { class: "vx-number" }, this.number, this.count)),
      h("div", { class: "vx-buttons" }, this.keepButton, this.ablateButton),
      this.keptList,
    );
  }

  // From the selects to a hook point: what was changed last stays, what no longer fits gives way.
  pick() {
    const fits = (point, keys) =>
      point.component === this.component.value &&
      keys.every((key) => String(point[key]) === this[key === "layer" ? "block" : "site"].value);
    const find = (keys) => this.about.points.find((point) => fits(point, keys));
    const point = find(["layer", "site"]) ?? find(["site"]) ?? find(["layer"]) ?? find([]);
    const index = Math.min(this.current[1], point.n - 1);
    this.choose([point.name, point.name === this.current[0] ? index : this.startOf(point, index)]);
  }

  startOf(point, index) {
    const known = this.source.indices?.(point.name);
    return known && !known.includes(index) ? known[0] : index;
  }

  options(point) {
    const of = (key, list) => [
      ...new Set(list.map((other) => String(other[key]))),
    ];
    const inside = this.about.points.filter((other) => other.component === point.component);
    const blocks = of("layer", inside);
    const sites = of("site", inside.filter((other) => other.layer === point.layer));
    const set = (select, values, value, text) => {
      select.replaceChildren(...values.map((v) => h("option", { value: v }, text(v))));
      select.value = String(value);
      select.disabled = values.length < 2;
    };
    this.component.value = point.component;
    set(this.block, blocks, point.layer, (v) => (v === "null" ? "outside of blocks" : v));
    set(this.site, sites, point.site, (v) => v);
  }

  choose(neuron) {
    const point = this.points.get(neuron[0]);
    const known = this.source.indices?.(neuron[0]);
    if (!Number.isInteger(neuron[1]) || neuron[1] < 0 || neuron[1] >= point.n) {
      this.scene.say(`There is no neuron ${neuron[1]}: ${point.name} has 0 to ${point.n - 1}.`);
    } else if (known && !known.includes(neuron[1])) {
      this.scene.say(`Neuron ${neuron[1]} is not in this page: it holds ${known.length} of ${point.n}.`);
    } else {
      this.source.shown = neuron;
      if (!same(this.current, neuron)) return this.changed();
    }
    this.number.value = this.current[1];
    return undefined;
  }

  // Follows the source: Python, another view or this one has chosen something.
  async changed() {
    if (!this.points) return;
    const turn = ++this.turn;
    const [name, index] = (this.current = this.source.shown);
    const point = this.points.get(name);
    this.options(point);
    this.number.value = index;
    this.number.max = point.n - 1;
    this.count.textContent = `of ${point.n.toLocaleString("en")}`;
    this.showKept();
    try {
      if (this.layer?.name !== name) {
        this.root.setAttribute("aria-busy", "true");
        const found = await this.source.ask("layer", { name });
        if (turn !== this.turn) return;
        this.useLayer(name, point, found);
      }
      const neuron = await this.source.ask("neuron", { name, index });
      if (turn === this.turn) this.show(neuron);
    } catch (error) {
      this.scene.say(error.message);
    }
    if (turn === this.turn) this.root.removeAttribute("aria-busy");
  }

  show(neuron) {
    this.scene.paint(neuron);
    this.drawStrip();
    drawFacts(this.facts, this.current, neuron.facts ?? []);
    drawCards(this.cards, neuron.cards ?? []);
    this.root.dataset.neuron = written(this.current);
  }

  useLayer(name, point, found) {
    const indices = found.indices ?? Array.from({ length: point.n }, (_, i) => i);
    const numbers = Object.fromEntries(found.arrays.map((key, i) => [key, found.buffers[i]]));
    this.layer = { name, indices, numbers, place: new Map(indices.map((index, i) => [index, i])) };
    for (const option of this.sortBy.options) {
      option.disabled = option.value !== "index" && !(option.value in numbers);
    }
    if (!(this.sort in numbers)) this.sort = this.sortBy.value = "largest";
    this.arrange();
    if (this.scene.space?.key !== point.space) this.scene.use(point.space);
    emptyHere(this.here);
  }

  // The strip ------------------------------------------------------------------------------------

  stripPanel() {
    this.sortBy = h(
      "select",
      { "aria-label": "sort neurons by", onchange: () => this.resort() },
      Object.entries(SORTS).map(([value, text]) => h("option", { value }, text)),
    );
    const canvas = h("canvas", { class: "vx-strip", tabindex: 0, role: "slider" });
    const lens = h("canvas", { class: "vx-strip vx-lens", "aria-hidden": "true" });
    const choose = (place) => this.choose([this.current[0], this.layer.indices[place]]);
    const hint = (place) => this.hintNeuron(place);
    this.strip = new Strip(canvas, choose, hint);
    this.lens = new Strip(lens, choose, hint);
    canvas.addEventListener("keydown", (event) => this.step(event));
    this.caption = h("span", { class: "vx-muted" });
    return h(
      "section",
      { class: "vx-panel", "aria-label": "all neurons of the layer" },
      h("div", { class: "vx-row" }, h("label", {}, "neurons by", this.sortBy), this.caption),
      canvas,
      lens,
    );
  }

  resort() {
    this.sort = this.sortBy.value;
    this.arrange();
    this.drawStrip();
  }

  arrange() {
    const { layer } = this;
    layer.values = layer.numbers[this.sort] ?? layer.numbers.largest;
    layer.order = layer.indices.map((_, place) => place);
    if (this.sort !== "index") {
      const rank = (place) => (Number.isFinite(layer.values[place]) ? layer.values[place] : -Infinity);
      layer.order.sort((a, b) => rank(b) - rank(a) || a - b);
    }
  }

  drawStrip() {
    const { layer } = this;
    if (!layer) return;
    const chosen = layer.place.get(this.current[1]);
    const rank = layer.order.indexOf(chosen);
    const kept = new Set(
      this.source.kept.filter(([name]) => name === layer.name).map(([, i]) => layer.place.get(i)),
    );
    const ink = getComputedStyle(this.root).color;
    const common = { order: layer.order, values: layer.values, chosen, kept, ink };
    const { canvas } = this.strip;
    this.lens.canvas.hidden = layer.order.length < canvas.clientWidth / 2;
    this.strip.draw(common);
    if (!this.lens.canvas.hidden) {
      const first = Math.max(0, Math.min(rank - LENS, layer.order.length - 2 * LENS - 1));
      const last = Math.min(layer.order.length, first + 2 * LENS + 1);
      this.lens.draw({ ...common, first, last });
    }
    canvas.setAttribute("aria-valuemin", 0);
    canvas.setAttribute("aria-valuemax", layer.order.length - 1);
    canvas.setAttribute("aria-valuenow", rank);
    canvas.setAttribute("aria-label", `neurons of ${layer.name}, by ${SORTS[this.sort]}`);
    canvas.setAttribute("aria-valuetext", this.describe(chosen));
    this.caption.textContent = this.describe(chosen);
  }

  describe(place) {
    const { layer } = this;
    const rank = layer.order.indexOf(place) + 1;
    const numbers = Object.entries(layer.numbers).map(
      ([key, values]) => `${SUMMARIES[key]} ${show(values[place])}`,
    );
    return `neuron ${layer.indices[place]}, ${rank} of ${layer.order.length}: ${numbers.join(", ")}`;
  }

  hintNeuron(place) {
    this.caption.textContent = this.describe(place ?? this.layer.place.get(this.current[1]));
  }

  step(event) {
    const { order, place, indices } = this.layer;
    const page = Math.max(1, Math.round(order.length / 20));
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: page, PageDown: -page };
    const rank = order.indexOf(place.get(this.current[1]));
    const ends = { Home: 0, End: order.length - 1 };
    const wanted = event.key in ends ? ends[event.key] : rank + (steps[event.key] ?? NaN);
    if (Number.isNaN(wanted)) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(order.length - 1, wanted));
    this.choose([this.current[0], indices[order[next]]]);
  }

  // At a place, keeping and ablating -------------------------------------------------------------

  async open(entry) {
    const [name] = this.current;
    try {
      const found = await this.source.ask("position", { name, entry });
      if (this.current[0] !== name) return;
      drawHere(this.here, entry, this.scene.what(entry), found, (index) => this.choose([name, index]));
    } catch (error) {
      this.scene.say(error.message);
    }
  }

  keep(neuron) {
    const kept = this.source.kept;
    const without = kept.filter((other) => !same(other, neuron));
    this.source.kept = without.length < kept.length ? without : [...kept, neuron];
    this.showKept();
    this.drawStrip();
  }

  showKept() {
    const { kept } = this.source;
    const isKept = kept.some((neuron) => same(neuron, this.current));
    this.keepButton.setAttribute("aria-pressed", isKept);
    this.keepButton.textContent = isKept ? "Kept" : "Keep";
    const tags = kept.map((neuron) =>
      h(
        "span",
        { class: "vx-tag" },
        h("button", { type: "button", onclick: () => this.choose(neuron) }, written(neuron)),
        h("button", { type: "button", "aria-label": `forget ${written(neuron)}`, onclick: () => this.keep(neuron) }, "×"),
      ),
    );
    const all = h("button", { type: "button", onclick: () => this.ablate(kept) }, `Ablate all ${kept.length}`);
    this.keptList.replaceChildren("kept", ...(kept.length > 1 ? [all] : []), ...tags);
    this.keptList.hidden = !kept.length;
  }

  async ablate(neurons) {
    const title = neurons.length === 1 ? written(neurons[0]) : `${neurons.length} kept neurons`;
    this.without.setAttribute("aria-busy", "true");
    try {
      drawAblation(this.without, title, await this.source.ask("ablate", { neurons }));
    } catch (error) {
      this.without.querySelector(".vx-refused")?.remove();
      this.without.append(h("p", { class: "vx-refused", role: "alert" }, error.message));
    }
    this.without.removeAttribute("aria-busy");
  }
}
