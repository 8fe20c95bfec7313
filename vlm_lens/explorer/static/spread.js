// A place for queries, which have none: what they show is handed to the patches of their image, in
// proportion to how much each of them attends to each patch.

class Spread {
  // The patches are told like a space; a patch has one weight for each query of its image. Here they
  // are further entries behind those of the space that the queries are in.
  constructor(patches, weights, space) {
    Object.assign(this, { patches, weights, first: space.at.length });
    this.of = Array.from({ length: patches.at.length }, (_, patch) => patch);
    this.entry = {}; // by image and query
    space.query.forEach((query, i) => {
      if (query >= 0) (this.entry[space.image[i]] ??= [])[query] = i;
    });
    this.query = space.query;
    this.image = space.image;
  }

  extended(space) {
    const both = (key) => [...space[key], ...this.patches[key]];
    return { ...space, image: both("image"), level: both("level"), cell: both("cell"), box: both("box") };
  }

  // How much each query attends to a patch.
  to(patch) {
    const { queries } = this.patches;
    return this.weights.subarray(patch * queries, (patch + 1) * queries);
  }

  // A value for each entry, and behind them one for each patch.
  values(values) {
    const sum = (patch) => {
      const entries = this.entry[this.patches.image[patch]];
      return this.to(patch).reduce((total, weight, query) => total + weight * values[entries[query]], 0);
    };
    return Float32Array.from([...values, ...this.of.map(sum)]);
  }

  // By how much that may be off if each value is off by at most `error`.
  error(error) {
    return error * Math.max(...this.of.map((patch) => this.to(patch).reduce((a, b) => a + b, 0)));
  }

  // How much an entry attends to each patch, if it is a query.
  attention(entry) {
    if (!(this.query[entry] >= 0)) return null;
    const isIts = (patch) => this.patches.image[patch] === this.image[entry];
    return this.of.map((patch) => (isIts(patch) ? this.to(patch)[this.query[entry]] : 0));
  }

  // The query that attends to a patch most, and how much.
  reader(patch) {
    const weights = this.to(patch);
    const query = weights.reduce((best, weight, i) => (weight > weights[best] ? i : best), 0);
    return { entry: this.entry[this.patches.image[patch]][query], weight: weights[query] };
  }
}
