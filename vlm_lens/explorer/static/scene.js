// The image and the words, in the colours of one neuron and linked to each other.

class Scene {
  // What `open` does is up to the page: it is called with the entry that was clicked.
  constructor(about, open) {
    this.about = about;
    this.hint = h("p", { class: "vx-hint", role: "status" }, "");
    this.see = h("div", { class: "vx-see" });
    this.read = h("div", { class: "vx-read" });
    this.open = open;
    const handle = (action) => (event) => {
      const entry = event.target.closest("[data-entry]")?.dataset.entry;
      if (entry != null) action(Number(entry));
    };
    for (const part of [this.see, this.read]) {
      part.addEventListener("pointerover", handle((entry) => this.point(entry)));
      part.addEventListener("focusin", handle((entry) => this.point(entry)));
      part.addEventListener("click", handle(open));
      part.addEventListener("pointerleave", () => this.point(null));
      part.addEventListener("keydown", (event) => this.walk(event));
    }
  }

  use(key) {
    const space = this.about.spaces[key];
    this.space = { key, ...space, n: space.at.length };
    this.marks = Array.from({ length: this.space.n }, () => []);
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
    this.alternative = h("p", { class: "vx-muted" });
    return [...shown, this.legend, this.alternative, h("div", { class: "vx-row" }, tools)];
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
    const modality = MODALITIES[space.modality[i]];
    const kind = space.kind.includes("tokens") ? `position ${space.at[i]}` : `entry ${space.at[i]}`;
    const [row, column] = space.cell[i];
    const nowhere = `${modality} ${visible(space.labels[i])}${modality === "image" ? ", without a place" : ""}`;
    const place = row < 0 ? nowhere : `patch in row ${row}, column ${column}`;
    return `${kind}, ${place}`;
  }

  paint(neuron) {
    const [values] = neuron.buffers;
    Object.assign(this, { values, limit: neuron.limit, error: neuron.error ?? 0 });
    this.marks.forEach((marks, i) => {
      const colour = tint(values[i], neuron.limit);
      const label = `${this.what(i)}: ${show(values[i])}`;
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
    const low = this.values.some((value) => value < 0);
    const stops = [...(low ? [tint(-1, 1), tint(-1e-9, 1), tint(0, 1)] : [tint(0, 1)]), tint(1, 1)];
    const places = low ? [0, 50, 50, 100] : [0, 100];
    const bar = h("span", { class: "vx-scale", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(90deg,${stops.map((c, i) => `${c} ${places[i]}%`).join(",")})`;
    const off = this.error ? `, each off by at most ${show(this.error)}` : "";
    const texts = [low ? show(-this.limit) : "0", show(this.limit), `activation${off}`];
    const [left, right, label] = texts.map((text) => h("span", {}, text));
    this.legend.replaceChildren(left, bar, right, label);
  }

  // The picture in words.
  summarise() {
    const { space, values } = this;
    if (!this.alternative || !values) return;
    const seen = [];
    for (let i = 0; i < space.n; i++) if (space.box[i] && space.level[i] === this.level) seen.push(i);
    if (!seen.length) {
      this.alternative.textContent = space.note || "No position here has a place in the image.";
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
    if (entry == null) {
      this.say("Point at a patch or a token to see which belong together; click it for its neurons.");
      return;
    }
    this.marks[entry].forEach((mark) => mark.classList.add("vx-linked"));
    this.say(`${this.what(entry)}: ${show(this.values?.[entry])}`);
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
