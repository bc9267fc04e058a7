// Draws the map of scatter_map.py: a slider over layers, a legend that highlights a class, texts of points.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("map-data").textContent);
const $ = (id) => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg";
const MAX_KEYS = 40, MAX_ROWS = 100, NEAR = 16;
const make = (tag, attributes) => {
  const element = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const places = (text) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, at) => view.getInt16(2 * at, true) / 1000);
};
for (const layer of data.layers) layer.places = places(layer.places);

// Classes differ in colour and, if there are more than eight, in shape; values differ in colour and size.
const PATHS = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-3.6-3.6h7.2v7.2h-7.2z", "M0-4.8L4.6 3.6h-9.2z", "M0-5l5 5-5 5-5-5z"];
const isClass = data.classes.length > 0;
let low = Infinity, high = -Infinity;
for (const value of data.labels) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
const share = (value) => (value - low) / (high - low || 1);
const colour = (label) => label === null ? "var(--c7)" : isClass ? `var(--c${label % 8})` : `hsl(${215 - 175 * share(label)} 75% 48%)`;
const shape = (label) => isClass && label !== null ? PATHS[Math.floor(label / 8) % 4] : PATHS[0];
const size = (label) => isClass || label === null ? 1 : 0.75 + 0.6 * share(label);
const name = (label) => label === null ? "" : isClass ? data.classes[label] : String(label);
const describe = (at) => [name(data.labels[at]), data.texts[at] || "(no text)"].filter(Boolean).join(": ");

const map = $("map"), families = [...new Set(data.layers.map((layer) => layer.family))];
let spots = new Float32Array(0), current = -1, members = [];
const ring = make("circle", { class: "ring", r: 8, visibility: "hidden" });
const select = (at) => {
  if (at < 0) return;
  current = at;
  ring.setAttribute("cx", spots[2 * at]);
  ring.setAttribute("cy", spots[2 * at + 1]);
  ring.setAttribute("visibility", "visible");
  $("point").textContent = describe(at);
};
const num = data.layers.length ? data.layers[0].places.length / 2 : 0;
const labels = Array.from({ length: num }, (_, at) => data.labels[at] ?? null);
const dots = labels.map((label, at) => {
  const dot = make("path", { d: shape(label), fill: colour(label), opacity: 0.75 });
  dot.addEventListener("pointerenter", () => select(at));
  return dot;
});
const xTitle = make("text", { x: 450, y: 588, "text-anchor": "middle" });
const yTitle = make("text", { transform: "translate(18 300) rotate(-90)", "text-anchor": "middle" });
map.append(...dots, ring, xTitle, yTitle);

const best = (cost) => {
  let found = -1, least = Infinity;
  for (let at = 0; at < num; at++) {
    const value = cost(spots[2 * at], spots[2 * at + 1], at);
    if (value < least) { least = value; found = at; }
  }
  return [found, least];
};
map.addEventListener("click", (event) => {
  const box = map.getBoundingClientRect(), scale = Math.min(box.width / 900, box.height / 600);
  const x = (event.clientX - box.left - (box.width - 900 * scale) / 2) / scale;
  const y = (event.clientY - box.top - (box.height - 600 * scale) / 2) / scale;
  const [at, distance] = best((px, py) => Math.hypot(px - x, py - y));
  if (distance * scale <= NEAR) select(at);
});
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
const move = (dx, dy) => {
  if (current < 0) return select(best((x, y) => Math.hypot(x - 460, y - 290))[0]);
  const x = spots[2 * current], y = spots[2 * current + 1];
  const [at] = best((px, py, other) => {
    const along = (px - x) * dx + (py - y) * dy, across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    // Dots at the same place are visited in their order.
    if (along === 0 && across === 0) return dx + dy > 0 ? (other > current ? (other - current) * 1e-6 : Infinity) : (other < current ? (current - other) * 1e-6 : Infinity);
    return along > 0 ? along + 2 * across : Infinity;
  });
  select(at);
};
map.addEventListener("keydown", (event) => {
  if (!ARROWS[event.key]) return;
  event.preventDefault();
  move(...ARROWS[event.key]);
});
map.addEventListener("focus", () => { if (current < 0 && map.matches(":focus-visible")) move(0, 0); });

const show = () => {
  const layer = members[Number($("layer").value)];
  $("shown").textContent = layer.layer === null ? layer.name : `Layer ${layer.layer}`;
  map.dataset.layer = layer.name;
  spots = layer.places.map((value, at) => at % 2 ? 290 - 265 * value : 460 + 410 * value);
  dots.forEach((dot, at) => {
    const scale = size(labels[at]);
    dot.setAttribute("transform", `translate(${spots[2 * at].toFixed(1)} ${spots[2 * at + 1].toFixed(1)})${scale === 1 ? "" : ` scale(${scale.toFixed(2)})`}`);
  });
  if (current >= 0) select(current);
  const percent = layer.variance.map((part) => (100 * part).toFixed(1));
  xTitle.textContent = percent.length ? `First axis: ${percent[0]} % of the variance` : "";
  yTitle.textContent = percent.length > 1 ? `Second axis: ${percent[1]} %` : "";
};
const choose = () => {
  members = data.layers.filter((layer) => layer.family === $("family").value);
  const first = members.findIndex((layer) => layer.name === data.selected);
  $("layer").max = members.length - 1;
  $("layer").disabled = members.length < 2;
  $("layer").value = first < 0 ? members.length - 1 : first;
  show();
};
for (const family of families) $("family").append(new Option(family, family));
const selected = data.layers.find((layer) => layer.name === data.selected);
if (selected) $("family").value = selected.family;
$("family").hidden = families.length < 2;
$("family").addEventListener("change", choose);
$("layer").addEventListener("input", show);
if (data.layers.length) choose();

const highlight = (button, label) => {
  const on = button.getAttribute("aria-pressed") !== "true";
  for (const other of $("legend").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", on);
  dots.forEach((dot, at) => {
    const chosen = on && labels[at] === label;
    dot.setAttribute("opacity", chosen ? 1 : on ? 0.07 : 0.75);
    if (chosen) map.insertBefore(dot, ring);
  });
};
const isolated = (text) => {
  const element = document.createElement("bdi");
  element.textContent = text;
  return element;
};
if (isClass) {
  const counts = new Map();
  for (const label of labels) if (label !== null) counts.set(label, (counts.get(label) || 0) + 1);
  const frequent = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a)).slice(0, MAX_KEYS).sort((a, b) => a - b);
  for (const label of frequent) {
    const button = document.createElement("button"), item = document.createElement("li");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const key = make("svg", { width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" });
    key.append(make("path", { d: shape(label), fill: colour(label) }));
    button.append(key, isolated(data.classes[label]));
    button.addEventListener("click", () => highlight(button, label));
    item.append(button);
    $("legend").append(item);
  }
  if (counts.size > frequent.length) $("legend").append(`and ${counts.size - frequent.length} classes with fewer points`);
} else if (low <= high) {
  const ramp = document.createElement("span");
  ramp.className = "ramp";
  $("legend").append(`Colour and size: ${low}`, ramp, String(high));
}

const table = document.createElement("table");
const row = (tag, cells) => {
  const line = document.createElement("tr");
  for (const text of cells) {
    const cell = document.createElement(tag);
    cell.append(isolated(text));
    line.append(cell);
  }
  return line;
};
$("map-table").addEventListener("toggle", () => {
  if (table.rows.length) return;
  table.createTHead().append(row("th", [isClass ? "Class" : "Value", "Text"]));
  const body = table.createTBody();
  for (let at = 0; at < Math.min(num, MAX_ROWS); at++) body.append(row("td", [name(labels[at]) || "–", data.texts[at] || "(no text)"]));
  const box = document.createElement("div");
  box.className = "wide";
  box.append(table);
  $("map-table").append(box);
});
})();
