// The review desk: cells as thumbnails or as boxes on a field, a detail view, keyboard shortcuts.
// Python sets `value` and receives the events "correct", "inspect" and "add_cell".
const UNDECIDED = "?", EXCLUDED = "-";
const KINDS = ["unknown", "between", "uncalibrated", "unidentifiable", "sure"];  // most doubtful first
const COMPARE = {
  doubt: (a, b) => KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind) || a.p - b.p,
  label: (a, b) => labelOf(a).localeCompare(labelOf(b)) || a.p - b.p,
  p: (a, b) => a.p - b.p,
  file: (a, b) => a.file.localeCompare(b.file, undefined, { numeric: true }),
};
const NO_FILTER = { label: "", kind: "", sample: "" };
let data = null, corrections = {}, history = [];
let selected = null, order = "doubt", reversed = false, zoom = 1, filter = { ...NO_FILTER };
let spot = null;  // centre of the frame while a missed cell is being added, in fractions of the picture
let timer = 0, sending = 0, edits = 0;

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child != null));
  return node;
}
const button = (attributes, ...children) => make("button", { type: "button", ...attributes }, ...children);
const percent = p => p > 0.995 ? ">99%" : p < 0.005 ? "<1%" : `${Math.round(100 * p)}%`;
const address = path => `${window.gradio_config?.root || ""}/gradio_api/file=${path}`;
const labelOf = cell => corrections[cell.n] ?? (cell.kind === "unknown" ? UNDECIDED : cell.label);
const find = selector => element.querySelector(selector);
const cellOf = n => data.cells.find(cell => cell.n === n);

function classOf(code) {
  const entry = [...data.labels, ...data.extra].find(entry => entry.code === code);
  return { code, name: code, colour: "#555", ...entry };
}

function visible() {
  const cells = data.cells.filter(cell => (!filter.label || labelOf(cell) === filter.label)
    && (!filter.kind || (filter.kind === "corrected" ? cell.n in corrections : cell.kind === filter.kind))
    && (!filter.sample || cell.sample === filter.sample || cell.folder === filter.sample));
  cells.sort((a, b) => COMPARE[order](a, b) || a.n - b.n);
  return reversed ? cells.reverse() : cells;
}

function filterMenu(name, entries) {
  const options = entries.map(([value, text]) => make("option", { value, selected: filter[name] === value }, text));
  const onchange = event => {
    filter[name] = event.target.value;
    draw();
    if (name === "sample") send();
  };
  const menu = make("select", { name, onchange }, make("option", { value: "" }, data.words.all), ...options);
  return make("label", {}, data.words[name], menu);
}

function toolbar() {
  const names = { [UNDECIDED]: data.words.undecided, [EXCLUDED]: data.words.excluded };
  const codes = [...new Set(data.cells.map(labelOf))].sort().map(code => [code, names[code] ?? code]);
  const kinds = [...KINDS, "corrected"].map(kind => [kind, data.words[kind]]);
  const samples = [...new Set(data.cells.flatMap(cell => [cell.sample, cell.folder]))].filter(Boolean).sort();
  return make("div", { class: "tools" },
    filterMenu("label", codes),
    filterMenu("kind", kinds),
    data.field ? null : filterMenu("sample", samples.map(name => [name, name])),
    make("span", { class: "sorts" }, ...(data.field ? fieldButtons() : Object.keys(COMPARE).map(sortButton))),
    make("span", { class: "number", role: "status" }));
}

function sortButton(name) {
  const current = order === name;
  const onclick = () => {
    reversed = current && !reversed;
    order = name;
    draw();
  };
  const arrow = current ? (reversed ? " ↑" : " ↓") : "";
  return button({ class: "sort", "aria-pressed": String(current), onclick }, data.words[`sort_${name}`], arrow);
}

function fieldButtons() {
  const zoomButton = (text, factor, label) => button({ class: "sort", "aria-label": label, onclick: () => {
    zoom = Math.min(8, Math.max(1, zoom * factor));
    find(".canvas").style.width = `${100 * zoom}%`;
  } }, text);
  const adding = { class: "sort add", "aria-pressed": String(Boolean(spot)), onclick: toggleAdding };
  return [
    zoomButton("−", 1 / 1.4, data.words.zoom_out),
    zoomButton("+", 1.4, data.words.zoom_in),
    button(adding, data.words.add),
  ];
}

function badge(cell) {
  const code = labelOf(cell), { name, colour } = classOf(code);
  const mark = { [UNDECIDED]: "?", [EXCLUDED]: "×" }[code];
  const text = mark ?? (data.labels.some(entry => entry.code === code) ? code : name);
  return make("b", { style: `background:${mark ? "#3a3a3a" : colour}` }, text + (cell.n in corrections ? " ✓" : ""));
}

function tile(cell) {
  const name = `${cell.file}: ${labelOf(cell)}. ${cell.verdict}`;
  const onclick = event => {
    event.stopPropagation();
    select(cell.n);
  };
  const attributes = { class: `tile ${cell.kind}`, "data-n": cell.n, "aria-label": name, title: name, tabindex: -1, onclick };
  if (!data.field) return button(attributes, make("img", { src: address(cell.url), alt: "", loading: "lazy" }), badge(cell));
  const [left, top, side] = cell.box;
  const style = `${outline(left, top, side)};border-color:${classOf(labelOf(cell)).colour}`;
  return button({ ...attributes, style }, badge(cell));
}

// A square in pixels of the field as a position in the canvas.
function outline(left, top, side) {
  const { width, height } = data.field;
  const [x, y, w, h] = [left / width, top / height, side / width, side / height].map(value => `${100 * value}%`);
  return `left:${x};top:${y};width:${w};height:${h}`;
}

function draw() {
  const root = find(".desk");
  if (!root) return;
  if (!data?.cells) {
    root.replaceChildren();
    return;
  }
  const scroll = find(".stage")?.scrollTop || 0, cells = visible(), tiles = cells.map(tile);
  const board = data.field ? canvas(tiles) : make("div", { class: "board" }, ...tiles);
  const stage = { class: "stage", role: "group", "aria-label": data.words.cells, onkeydown: onKey };
  const keys = data.words.keys.replace("{last}", Math.min(9, data.labels.length));
  root.replaceChildren(
    toolbar(),
    make("div", { class: "work" }, make("div", stage, board), make("aside", { class: "large" })),
    make("p", { class: "help keys" }, keys, data.field ? ` ${data.words.keys_add}` : ""));
  find(".stage").scrollTop = scroll;
  find(".number").textContent = data.words.number.replace("{n}", cells.length).replace("{all}", data.cells.length);
  if (!cells.some(cell => cell.n === selected)) selected = cells[0]?.n ?? null;
  select(selected, false);
}

function canvas(tiles) {
  const onpointermove = event => {
    if (spot && (event.movementX || event.movementY)) place(event.clientX, event.clientY);
  };
  const onclick = event => {
    if (!spot) return;
    place(event.clientX, event.clientY);
    add();
  };
  const picture = make("img", { src: address(data.field.url), alt: data.words.field_alt });
  const attributes = { class: `canvas${spot ? " adding" : ""}`, style: `width:${100 * zoom}%`, onpointermove, onclick };
  return make("div", attributes, picture, ...tiles, spot && frame());
}

// ---- adding a missed cell: a frame that follows the pointer or the arrow keys
function toggleAdding() {
  if (spot) {
    spot = null;
    find(".spot")?.remove();
  } else {
    const stage = find(".stage").getBoundingClientRect();
    place(stage.left + stage.width / 2, stage.top + stage.height / 2);
    find(".canvas").append(frame());
  }
  find(".canvas").classList.toggle("adding", Boolean(spot));
  find(".add").setAttribute("aria-pressed", String(Boolean(spot)));
  (find(".spot") || find(".tile[aria-current]"))?.focus();
}

const frame = () => button({ class: "spot", "aria-label": data.words.spot, style: frameOutline(), onkeydown: moveFrame });

function frameOutline() {
  const { width, height, side } = data.field;
  return outline(spot.x * width - side / 2, spot.y * height - side / 2, side);
}

function place(x, y) {
  const area = find(".canvas").getBoundingClientRect();
  const clip = fraction => Math.min(1, Math.max(0, fraction));
  spot = { x: clip((x - area.left) / area.width), y: clip((y - area.top) / area.height) };
  if (find(".spot")) find(".spot").style.cssText = frameOutline();
}

function moveFrame(event) {
  const area = find(".canvas").getBoundingClientRect();
  const step = (event.shiftKey ? 1 : 0.1) * data.field.side * area.width / data.field.width;
  const moves = { ArrowRight: [step, 0], ArrowLeft: [-step, 0], ArrowDown: [0, step], ArrowUp: [0, -step] };
  if (moves[event.key]) {
    const [right, down] = moves[event.key];
    place(area.left + spot.x * area.width + right, area.top + spot.y * area.height + down);
    event.target.scrollIntoView({ block: "nearest", inline: "nearest" });
  } else if (event.key === "Enter" || event.key === " ") add();
  else if (event.key === "Escape") toggleAdding();
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function add() {
  trigger("add_cell", spot);
  toggleAdding();
}

function select(n, focus = true) {
  for (const previous of element.querySelectorAll(".tile[aria-current]")) {
    previous.removeAttribute("aria-current");
    previous.tabIndex = -1;
  }
  selected = n;
  const cell = cellOf(n), current = find(`.tile[data-n="${n}"]`);
  if (!cell || !current) {
    find(".large")?.replaceChildren();
    return;
  }
  current.setAttribute("aria-current", "true");
  current.tabIndex = 0;
  if (focus) {
    current.focus({ preventScroll: true });
    current.scrollIntoView({ block: "nearest" });
  }
  panel(cell);
  clearTimeout(timer);
  timer = setTimeout(() => trigger("inspect", { number: n }), focus ? 350 : 700);
}

function panel(cell) {
  const bars = cell.top.map(([code, p]) => make("li", {},
    make("span", { class: "code" }, code),
    make("span", { class: "name" }, classOf(code).name),
    make("span", { class: "percent" }, percent(p)),
    make("span", { class: "bar", "aria-hidden": true }, make("i", { style: `width:${100 * p}%` }))));
  const choice = (code, key, ...text) => button(
    { class: "class", "aria-pressed": String(labelOf(cell) === code), onclick: () => correct(cell.n, code) },
    key ? make("kbd", {}, key) : null, ...text);
  const classes = data.labels.map(({ code, name }, i) => choice(code, i < 9 && String(i + 1), make("b", {}, code), ` ${name}`));
  const onchange = event => event.target.value && correct(cell.n, event.target.value);
  const others = make("select", { "aria-label": data.words.other, onchange },
    make("option", { value: "" }, data.words.other),
    ...data.extra.map(({ code, name }) => make("option", { value: code, selected: labelOf(cell) === code }, name)));
  find(".large").replaceChildren(
    make("img", { src: address(cell.url), alt: cell.file }),
    make("p", { class: "file" }, cell.file),
    make("p", { class: `said ${cell.kind}` }, cell.verdict),
    make("ol", { class: "bars" }, ...bars),
    make("div", { class: "classes" },
      ...classes,
      others,
      choice(UNDECIDED, "U", data.words.undecided),
      choice(EXCLUDED, "X", data.words.excluded),
      button({ class: "class", "aria-pressed": "false", onclick: undo }, make("kbd", {}, "Z"), data.words.undo)));
}

function correct(n, code) {
  const cell = cellOf(n);
  if (!cell) return;  // the filters hide all cells
  history.push([n, corrections[n]]);
  if (code === cell.label && cell.kind !== "unknown") delete corrections[n];
  else corrections[n] = code;
  changed(cell);
}

function undo() {
  if (!history.length) return;
  const [n, code] = history.pop();
  if (code === undefined) delete corrections[n];
  else corrections[n] = code;
  changed(cellOf(n));
}

function changed(cell) {
  const focused = element.contains(document.activeElement);
  find(`.tile[data-n="${cell.n}"]`)?.replaceWith(tile(cell));
  select(cell.n, focused);
  send();
}

function send() {  // debounced: each recount redraws the chart
  clearTimeout(sending);
  sending = setTimeout(() => {
    sending = 0;
    const version = Date.now() + edits++ / 1000;
    trigger("correct", { corrections: { ...corrections }, sample: filter.sample, version });
  }, 200);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const tiles = [...element.querySelectorAll(".tile")];
  const columns = data.field ? 1 : tiles.filter(tile => tile.offsetTop === tiles[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  const key = event.key.toLowerCase();
  if (step !== undefined) {
    const index = tiles.findIndex(tile => Number(tile.dataset.n) === selected);
    const next = tiles[Math.min(tiles.length - 1, Math.max(0, index + step))];
    if (next) select(Number(next.dataset.n));
  } else if (/^[1-9]$/.test(key) && data.labels[key - 1]) correct(selected, data.labels[key - 1].code);
  else if (key === "u") correct(selected, UNDECIDED);
  else if (key === "x") correct(selected, EXCLUDED);
  else if (key === "z") undo();
  else if (key === "a" && data.field) toggleAdding();
  else return;
  event.preventDefault();
}

function receive() {
  const fresh = props.value || null;
  const same = data && fresh?.id === data.id;
  if (fresh && !same) {
    [history, selected, zoom, spot] = [[], null, 1, null];
    filter = { ...NO_FILTER };
  }
  if (fresh && !(sending && same)) corrections = { ...fresh.corrections };
  if (fresh?.select != null) selected = fresh.select;
  data = fresh;
  draw();
  if (fresh?.select != null) select(selected);
}
watch("value", receive);
receive();
