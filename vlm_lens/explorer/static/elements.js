// Elements, numbers and colours.

const POSITIVE = [213, 94, 0];
const NEGATIVE = [0, 114, 178];
const ATTENTION = [0, 158, 115];
const STRONGEST = 0.8;
const MODALITIES = { i: "image", a: "audio", t: "text", s: "special", p: "padding" };
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const show = (value) =>
  Number.isFinite(value) ? String(Number(value.toPrecision(3))).replace("-", "−") : "–";
const signed = (value) => (value > 0 ? "+" : "") + show(value);
const percent = (share) =>
  share < 0.0001 ? "< 0.01%" : `${share < 0.0995 ? show(share * 100) : Math.round(share * 100)}%`;
const written = ([name, index]) => `${name}[${index}]`;
const same = (a, b) => a && b && a[0] === b[0] && a[1] === b[1];

function tint(value, limit, positive = POSITIVE) {
  const share = Number.isFinite(value) ? Math.min(Math.abs(value) / (limit || 1), 1) : 0;
  return `rgba(${(value < 0 ? NEGATIVE : positive).join(",")},${(STRONGEST * share).toFixed(3)})`;
}

// A line that says what colours mean: from the smallest over 0 to the largest, or from 0 on.
function legend(low, high, label, positive = POSITIVE) {
  const ends = low < 0 ? [[-1, 0], [-1e-9, 50], [0, 50], [1, 100]] : [[0, 0], [1, 100]];
  const stops = ends.map(([value, place]) => `${tint(value, 1, positive)} ${place}%`);
  const bar = h("span", { class: "vx-scale", "aria-hidden": "true" });
  bar.style.background = `linear-gradient(90deg,${stops.join(",")})`;
  const texts = [low < 0 ? show(low) : "0", high, label];
  const [left, right, what] = texts.map((text) => h("span", {}, text));
  return [left, bar, right, what];
}

// The largest positive and the smallest negative value.
function limits(values) {
  let [high, low] = [0, 0];
  for (const value of values) {
    if (value > high) high = value;
    if (value < low) low = value;
  }
  return { high, low };
}

function visible(token) {
  const text = token.replaceAll("\n", "↵").replaceAll("\r", "␍").replaceAll("\t", "⇥");
  return text.trim() ? text : text.replaceAll(" ", "␣") || "∅";
}

// Whether the page around us is dark: notebooks and editors say so, else the system does.
function isDark() {
  const { body, documentElement: html } = document;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  if (body.dataset.vscodeThemeKind) return !body.dataset.vscodeThemeKind.includes("light");
  if (html.getAttribute("theme")) return html.getAttribute("theme") === "dark"; // Colab
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

// The nearest other mark in a direction: what lies to the side counts three times as far.
function nearest(from, group, [dx, dy]) {
  const centre = (mark) => {
    const { left, top, width, height } = mark.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
  };
  const [x, y] = centre(from);
  let best = null;
  let least = Infinity;
  for (const mark of group) {
    if (mark === from) continue;
    const [mx, my] = centre(mark);
    const ahead = (mx - x) * dx + (my - y) * dy;
    const aside = Math.abs((mx - x) * dy) + Math.abs((my - y) * dx);
    if (ahead > 0.5 && ahead + 3 * aside < least) [best, least] = [mark, ahead + 3 * aside];
  }
  // At the end of a line of words, on with the next or the one before.
  if (!best && dx) best = group[group.indexOf(from) + dx] ?? null;
  return best;
}
