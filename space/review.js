// The review desk: cells as thumbnails or as boxes on a field, a detail view, keyboard shortcuts.
// Python sets `value` and receives the events "correct", "inspect" and "add_cell".
const UNDECIDED = "?", EXCLUDED = "-", DOUBT = { unknown: 0, between: 1, uncalibrated: 2, unidentifiable: 3, sure: 4 };
const COMPARE = {
  doubt: (a, b) => DOUBT[a.kind] - DOUBT[b.kind] || a.p - b.p, file: (a, b) => a.file.localeCompare(b.file, undefined, { numeric: true }),
  label: (a, b) => labelOf(a).localeCompare(labelOf(b)) || a.p - b.p, p: (a, b) => a.p - b.p,
};
let data = null, corrections = {}, history = [], selected = null, order = "doubt", reversed = false, zoom = 1, timer = 0, sending = 0, edits = 0;
let spot = null;  // centre of the frame while a missed cell is being added, in fractions of the picture
let filter = { label: "", kind: "", sample: "" };

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}
const percent = p => p > 0.995 ? ">99%" : p < 0.005 ? "<1%" : `${Math.round(100 * p)}%`;
const address = path => `${window.gradio_config?.root || ""}/gradio_api/file=${path}`;
const labelOf = cell => corrections[cell.n] ?? (cell.kind === "unknown" ? UNDECIDED : cell.label);
const find = selector => element.querySelector(selector);
const classOf = code => ({ code, name: code, colour: "#555", ...[...data.labels, ...data.extra].find(entry => entry.code === code) });

function visible() {
  const cells = data.cells.filter(cell => (!filter.label || labelOf(cell) === filter.label)
    && (!filter.kind || (filter.kind === "corrected" ? cell.n in corrections : cell.kind === filter.kind))
    && (!filter.sample || cell.sample === filter.sample || cell.folder === filter.sample));
  cells.sort((a, b) => COMPARE[order](a, b) || a.n - b.n);
  return reversed ? cells.reverse() : cells;
}

function filterMenu(name, entries) {
  const options = entries.map(([value, text]) => make("option", { value, selected: filter[name] === value }, text));
  return make("label", {}, data.words[name], make("select", { name, onchange: event => {
    filter[name] = event.target.value; draw(); if (name === "sample") send();
  } }, make("option", { value: "" }, data.words.all), ...options));
}

function toolbar() {
  const kinds = ["unknown", "between", "uncalibrated", "unidentifiable", "sure", "corrected"].map(kind => [kind, data.words[kind]]);
  const samples = [...new Set(data.cells.flatMap(cell => [cell.sample, cell.folder]))].filter(Boolean).sort().map(name => [name, name]);
  const codes = [...new Set(data.cells.map(labelOf))].sort().map(code => [code, code === UNDECIDED ? data.words.undecided : code === EXCLUDED ? data.words.excluded : code]);
  const sorts = data.field ? [] : ["doubt", "label", "p", "file"].map(name => make("button", {
    type: "button", class: "sort", "aria-pressed": String(order === name), onclick: () => { reversed = order === name && !reversed; order = name; draw(); },
  }, data.words[`sort_${name}`], order === name ? (reversed ? " ↑" : " ↓") : ""));
  const zooms = !data.field ? [] : [["−", 1 / 1.4, "zoom_out"], ["+", 1.4, "zoom_in"]].map(([text, factor, word]) => make("button", {
    type: "button", class: "sort", "aria-label": data.words[word], onclick: () => { zoom = Math.min(8, Math.max(1, zoom * factor)); find(".canvas").style.width = `${100 * zoom}%`; },
  }, text));
  if (data.field) zooms.push(make("button", { type: "button", class: "sort add", "aria-pressed": String(Boolean(spot)), onclick: toggleAdding }, data.words.add));
  return make("div", { class: "tools" }, filterMenu("label", codes), filterMenu("kind", kinds), data.field ? null : filterMenu("sample", samples),
    make("span", { class: "sorts" }, ...sorts, ...zooms), make("span", { class: "number", role: "status" }));
}

function badge(cell) {
  const code = labelOf(cell), known = data.labels.some(entry => entry.code === code);
  const text = code === UNDECIDED ? "?" : code === EXCLUDED ? "×" : known ? code : classOf(code).name;
  return make("b", { style: `background:${[UNDECIDED, EXCLUDED].includes(code) ? "#3a3a3a" : classOf(code).colour}` }, text + (cell.n in corrections ? " ✓" : ""));
}

function tile(cell) {
  const name = `${cell.file}: ${labelOf(cell)}. ${cell.verdict}`;
  const options = { type: "button", class: `tile ${cell.kind}`, "data-n": cell.n, "aria-label": name, title: name, tabindex: -1, onclick: event => { event.stopPropagation(); select(cell.n); } };
  if (!data.field) return make("button", options, make("img", { src: address(cell.url), alt: "", loading: "lazy" }), badge(cell));
  const [left, top, side] = cell.box, { width, height } = data.field;
  options.style = `left:${100 * left / width}%;top:${100 * top / height}%;width:${100 * side / width}%;height:${100 * side / height}%;border-color:${classOf(labelOf(cell)).colour}`;
  return make("button", options, badge(cell));
}

function draw() {
  const root = find(".desk");
  if (!root) return;
  if (!data || !data.cells) { root.replaceChildren(); return; }
  const scroll = find(".stage")?.scrollTop || 0, cells = visible();
  const board = !data.field ? make("div", { class: "board" }, ...cells.map(tile)) : make("div", { class: `canvas${spot ? " adding" : ""}`, style: `width:${100 * zoom}%`,
    onpointermove: event => spot && (event.movementX || event.movementY) && place(event.clientX, event.clientY), onclick: event => { if (!spot) return; place(event.clientX, event.clientY); add(); } },
    make("img", { src: address(data.field.url), alt: data.words.field_alt }), ...cells.map(tile),
    spot && frame());
  root.replaceChildren(toolbar(), make("div", { class: "work" }, make("div", { class: "stage", role: "group", "aria-label": data.words.cells, onkeydown: onKey }, board), make("aside", { class: "large" })),
    make("p", { class: "help keys" }, data.words.keys.replace("{last}", Math.min(9, data.labels.length)), data.field ? ` ${data.words.keys_add}` : ""));
  find(".stage").scrollTop = scroll;
  find(".number").textContent = data.words.number.replace("{n}", cells.length).replace("{all}", data.cells.length);
  if (!cells.some(cell => cell.n === selected)) selected = cells[0]?.n ?? null;
  select(selected, false);
}

// ---- adding a missed cell: a frame that follows the pointer or the arrow keys
function toggleAdding() {
  if (spot) { spot = null; find(".spot")?.remove(); }
  else {
    const stage = find(".stage").getBoundingClientRect();
    place(stage.left + stage.width / 2, stage.top + stage.height / 2);
    find(".canvas").append(frame());
  }
  find(".canvas").classList.toggle("adding", Boolean(spot));
  find(".add").setAttribute("aria-pressed", String(Boolean(spot)));
  (find(".spot") || find(".tile[aria-current]"))?.focus();
}

const frame = () => make("button", { type: "button", class: "spot", "aria-label": data.words.spot, style: outline(), onkeydown: moveFrame });

function place(x, y) {
  const area = find(".canvas").getBoundingClientRect(), clip = fraction => Math.min(1, Math.max(0, fraction));
  spot = { x: clip((x - area.left) / area.width), y: clip((y - area.top) / area.height) };
  if (find(".spot")) find(".spot").style.cssText = outline();
}

function outline() {
  const width = data.field.side / data.field.width, height = data.field.side / data.field.height;
  return `left:${100 * (spot.x - width / 2)}%;top:${100 * (spot.y - height / 2)}%;width:${100 * width}%;height:${100 * height}%`;
}

function moveFrame(event) {
  const area = find(".canvas").getBoundingClientRect(), step = (event.shiftKey ? 1 : 0.1) * data.field.side * area.width / data.field.width;
  const [right, down] = { ArrowRight: [step, 0], ArrowLeft: [-step, 0], ArrowDown: [0, step], ArrowUp: [0, -step] }[event.key] || [];
  if (right !== undefined) { place(area.left + spot.x * area.width + right, area.top + spot.y * area.height + down); event.target.scrollIntoView({ block: "nearest", inline: "nearest" }); }
  else if (event.key === "Enter" || event.key === " ") add();
  else if (event.key === "Escape") toggleAdding();
  else return;
  event.preventDefault(); event.stopPropagation();
}

function add() {
  trigger("add_cell", spot);
  toggleAdding();
}

function select(n, focus = true) {
  element.querySelectorAll(".tile[aria-current]").forEach(tile => { tile.removeAttribute("aria-current"); tile.tabIndex = -1; });
  selected = n;
  const cell = data.cells.find(one => one.n === n), button = find(`.tile[data-n="${n}"]`);
  if (!cell || !button) { find(".large")?.replaceChildren(); return; }
  button.setAttribute("aria-current", "true"); button.tabIndex = 0;
  if (focus) { button.focus({ preventScroll: true }); button.scrollIntoView({ block: "nearest" }); }
  panel(cell);
  clearTimeout(timer);
  timer = setTimeout(() => trigger("inspect", { number: n }), focus ? 350 : 700);
}

function panel(cell) {
  const bars = cell.top.map(([code, p]) => make("li", {}, make("span", { class: "code" }, code), make("span", { class: "name" }, classOf(code).name), make("span", { class: "percent" }, percent(p)),
    make("span", { class: "bar", "aria-hidden": true }, make("i", { style: `width:${100 * p}%` }))));
  const classes = data.labels.map((entry, i) => make("button", { type: "button", class: "class", "aria-pressed": String(labelOf(cell) === entry.code), onclick: () => correct(cell.n, entry.code) },
    i < 9 ? make("kbd", {}, String(i + 1)) : null, make("b", {}, entry.code), ` ${entry.name}`));
  const others = make("select", { "aria-label": data.words.other, onchange: event => event.target.value && correct(cell.n, event.target.value) }, make("option", { value: "" }, data.words.other),
    ...data.extra.map(({ code, name }) => make("option", { value: code, selected: labelOf(cell) === code }, name)));
  const act = (key, word, onclick, pressed) => make("button", { type: "button", class: "class", "aria-pressed": String(Boolean(pressed)), onclick }, make("kbd", {}, key), data.words[word]);
  find(".large").replaceChildren(make("img", { src: address(cell.url), alt: cell.file }), make("p", { class: "file" }, cell.file), make("p", { class: `said ${cell.kind}` }, cell.verdict), make("ol", { class: "bars" }, ...bars),
    make("div", { class: "classes" }, ...classes, others, act("U", "undecided", () => correct(cell.n, UNDECIDED), labelOf(cell) === UNDECIDED),
      act("X", "excluded", () => correct(cell.n, EXCLUDED), labelOf(cell) === EXCLUDED), act("Z", "undo", undo)));
}

function correct(n, code) {
  const cell = data.cells.find(one => one.n === n);
  history.push([n, corrections[n]]);
  if (code === cell.label && cell.kind !== "unknown") delete corrections[n]; else corrections[n] = code;
  changed(cell);
}

function undo() {
  const last = history.pop();
  if (!last) return;
  if (last[1] === undefined) delete corrections[last[0]]; else corrections[last[0]] = last[1];
  changed(data.cells.find(one => one.n === last[0]));
}

function changed(cell) {
  const old = find(`.tile[data-n="${cell.n}"]`), focused = element.contains(document.activeElement);
  if (old) old.replaceWith(tile(cell));
  select(cell.n, focused);
  send();
}

function send() {  // debounced: each recount redraws the chart
  clearTimeout(sending);
  sending = setTimeout(() => { sending = 0; trigger("correct", { corrections: { ...corrections }, sample: filter.sample, version: Date.now() + edits++ / 1000 }); }, 200);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const tiles = [...element.querySelectorAll(".tile")], at = tiles.findIndex(one => Number(one.dataset.n) === selected);
  const columns = data.field ? 1 : Math.max(1, tiles.filter(one => one.offsetTop === tiles[0].offsetTop).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key], key = event.key.toLowerCase();
  if (step !== undefined) { const next = tiles[Math.min(tiles.length - 1, Math.max(0, at + step))]; if (next) select(Number(next.dataset.n)); }
  else if (/^[1-9]$/.test(key) && data.labels[key - 1]) correct(selected, data.labels[key - 1].code);
  else if (key === "u") correct(selected, UNDECIDED);
  else if (key === "x") correct(selected, EXCLUDED);
  else if (key === "z") undo();
  else if (key === "a" && data.field) toggleAdding();
  else return;
  event.preventDefault();
}

function receive() {
  const fresh = props.value || null;
  if (fresh && (!data || fresh.id !== data.id)) { history = []; filter = { label: "", kind: "", sample: "" }; selected = null; zoom = 1; spot = null; }
  if (fresh && !(sending && data && fresh.id === data.id)) corrections = { ...fresh.corrections };
  if (fresh && fresh.select != null) selected = fresh.select;
  data = fresh;
  draw();
  if (fresh?.select != null) select(selected);
}
watch("value", receive);
receive();
