// The stand-alone page: the source is data in the page itself.

function embedded(data) {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const unpacked = new Map();
  const layer = (name) => {
    if (!unpacked.has(name)) {
      const packed = data.layers[name];
      const codes = bytes(packed.codes);
      const [low, high, limit] = [packed.low, packed.high, packed.limit].map(floats);
      const place = new Map(packed.indices.map((index, i) => [index, i]));
      unpacked.set(name, { codes, low, high, limit, place, entries: codes.length / low.length });
    }
    return unpacked.get(name);
  };
  const value = ({ codes, low, high, entries }, i, entry) =>
    low[i] + (codes[i * entries + entry] / 255) * (high[i] - low[i]);
  const answers = {
    about: () => ({ ...data.about, buffers: data.attention.map(floats) }),
    layer({ name }) {
      const { indices, arrays, numbers } = data.layers[name];
      return { indices, arrays, buffers: numbers.map(floats) };
    },
    neuron({ name, index }) {
      const found = layer(name);
      const i = found.place.get(index);
      const values = Float32Array.from({ length: found.entries }, (_, entry) => value(found, i, entry));
      const known = data.known[name]?.[index] ?? {};
      const cards = (known.cards ?? []).map((card) => ({ ...card, picture: data.pictures[card.picture] }));
      const error = (found.high[i] - found.low[i]) / 510;
      return { ...known, cards, limit: found.limit[i], error, buffers: [values] };
    },
    position({ name, entry }) {
      const found = layer(name);
      const { indices } = data.layers[name];
      const values = indices.map((_, i) => value(found, i, entry));
      const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a] || a - b).slice(0, 20);
      return {
        of: indices.length < data.about.points.find((point) => point.name === name).n && indices.length,
        neurons: order.map((i) => indices[i]),
        buffers: [Float32Array.from(order, (i) => values[i])],
      };
    },
    ablate() {
      throw new Error(
        "To ablate neurons needs a running kernel, and this page has none: call explore(model, inputs) in a notebook.",
      );
    },
  };
  return {
    notice: data.notice,
    note: data.note,
    shown: data.shown,
    kept: data.kept,
    ask: async (kind, args) => answers[kind](args),
    indices: (name) => data.layers[name].indices,
    onChange: () => () => {},
  };
}

const data = JSON.parse(document.getElementById("data").textContent);
new Page(document.getElementById("explorer"), embedded(data)).start();
