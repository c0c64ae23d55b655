// The page: pictures or folders in; a card per picture, the differential count and a CSV file out.

import { load, threads } from "./classifier.js";

const MAX_CARDS = 500; // the count and the CSV file cover every picture
const THUMBNAIL = 112;
const DOUBT = ["unknown", "between", "uncalibrated", "unidentifiable", "sure"];
const OR = new Intl.ListFormat("en-GB", { type: "disjunction" }); // A, B or C
const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const range = ([low, high]) => `${percent(low)} – ${percent(high)}`;

function element(tag, { className = "", text = "", title = "" } = {}, ...children) {
  const created = Object.assign(document.createElement(tag), { className, textContent: text, title });
  created.append(...children);
  return created;
}

function sentence({ kind, open }) {
  if (kind === "unknown") return "out of distribution: not a cell this model knows";
  if (kind === "between") return `probably ${open[0]}, possibly ${OR.format(open.slice(1))}`;
  if (kind === "unidentifiable") return `${open[0]}: a cell that cannot be identified`;
  return `${open[0]}: ${kind}`;
}

function thumbnail(bitmap) {
  const canvas = element("canvas");
  const scale = THUMBNAIL / Math.max(bitmap.width, bitmap.height);
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function card(answer, { labels, descriptions }) {
  if (answer.error) {
    return element("li", { className: "failed" }, element("h3", { text: answer.name }), element("p", { text: answer.error }));
  }
  const order = labels.map((_, i) => i).sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  const top = order.slice(0, 3).map((i) => {
    const meter = element("meter");
    meter.value = answer.probabilities[i];
    const name = element("span", { text: labels[i], title: descriptions[labels[i]] });
    return element("li", {}, name, meter, element("span", { text: percent(answer.probabilities[i]) }));
  });
  const sets = Object.entries(answer.sets).map(([level, names]) => `${percent(level).replace(".0", "")} set: ${names.join(", ") || "none"}`);
  const details = [...sets, ...(answer.oodScore === null ? [] : [`OOD score: ${answer.oodScore.toPrecision(4)}`])];
  return element(
    "li",
    { className: answer.verdict.kind },
    thumbnail(answer.bitmap),
    element("h3", { text: answer.name, title: answer.name }),
    element("p", { className: "verdict", text: sentence(answer.verdict) }),
    element("ol", {}, ...top),
    element("p", { className: "details", text: details.join(" · ") }),
  );
}

// CSV (RFC 4180); values that a spreadsheet would run as a formula are quoted with an apostrophe.
function csv(answers, { labels }) {
  const levels = Object.keys(answers.find((answer) => answer.sets)?.sets ?? {});
  const header = ["file_name", "predicted_label", ...labels.map((label) => `probability_${label}`)];
  header.push(...levels.map((level) => `conformal_set_${level}`), "ood_score", "verdict", "error");
  const rows = answers.map((answer) => [
    answer.name,
    answer.label,
    ...labels.map((_, i) => answer.probabilities?.[i]),
    ...levels.map((level) => answer.sets?.[level].join(" ")),
    answer.oodScore,
    answer.verdict?.kind,
    answer.error,
  ]);
  const field = (value) => {
    let text = String(value ?? "");
    if (typeof value === "string" && /^\s*[=+\-@]|^[\t\r\n]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...rows].map((row) => row.map(field).join(",") + "\r\n").join("");
}

// The dropped files, and those in dropped folders, with their paths.
async function droppedFiles(items) {
  const files = [];
  async function walk(entry) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      files.push({ file, name: entry.fullPath.replace(/^\//, "") });
      return;
    }
    const reader = entry.createReader();
    for (let batch; (batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) {
      for (const child of batch) await walk(child);
    }
  }
  for (const entry of [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean)) await walk(entry);
  return files;
}

function page(model) {
  const answers = [];
  let queue = [];
  let working = false;

  function showCounts() {
    const good = answers.filter((answer) => !answer.error);
    const kinds = Object.fromEntries(DOUBT.map((kind) => [kind, good.filter((answer) => answer.verdict.kind === kind).length]));
    const failed = answers.length - good.length;
    $("summary").textContent = [
      `${good.length.toLocaleString("en")} ${good.length === 1 ? "cell" : "cells"}`,
      kinds.between && `${kinds.between} uncertain`,
      kinds.unknown && `${kinds.unknown} out of distribution`,
      failed && `${failed} unreadable`,
    ].filter(Boolean).join(", ");
    const rows = model.count(good).map((entry) => {
      const name = element("th", { text: entry.label, title: model.descriptions[entry.label] });
      const cells = [entry.cells, percent(entry.share), range(entry.interval), percent(entry.corrected), range(entry.correctedInterval)];
      return element("tr", {}, name, ...cells.map((text) => element("td", { text: String(text) })));
    });
    $("counts").tBodies[0].replaceChildren(...rows);
    $("counts").hidden = rows.length === 0;
  }

  async function work(files) {
    queue.push(...files.sort((a, b) => (a.name < b.name ? -1 : 1))); // folders are listed in no particular order
    if (working) return;
    working = true;
    $("result").hidden = false;
    $("progress").hidden = false;
    for (let done = 0, next; done < queue.length; done++) {
      const { file, name } = queue[done];
      const opening = next ?? model.open(file);
      next = queue[done + 1] && model.open(queue[done + 1].file); // decoded while the network runs
      next?.catch(() => {}); // thrown by `classify` when its turn comes
      let answer;
      try {
        answer = { name, ...(await model.classify(opening)) };
      } catch (error) {
        answer = { name, error: error.message };
      }
      if (answers.length < MAX_CARDS) $("cells").append(card(answer, model));
      answer.bitmap?.close();
      delete answer.bitmap;
      answers.push(answer);
      $("progress").value = (done + 1) / queue.length;
      $("state").textContent = `${done + 1} of ${queue.length}`;
      await new Promise((resolve) => setTimeout(resolve)); // let the page render
    }
    queue = [];
    working = false;
    $("progress").hidden = true;
    $("state").textContent = ready;
    const rank = (answer) => (answer.error ? -1 : DOUBT.indexOf(answer.verdict.kind) + Math.max(...answer.probabilities));
    const cards = [...$("cells").children].map((item, i) => ({ item, rank: rank(answers[i]) }));
    cards.sort((a, b) => a.rank - b.rank).forEach(({ item }, i) => (item.style.order = i)); // most uncertain first
    $("more").textContent =
      answers.length > MAX_CARDS ? `Only the first ${MAX_CARDS} of ${answers.length} pictures are shown; the CSV file has all.` : "";
    showCounts();
    window.answers = answers;
  }

  const ready = `Ready: ${threads} ${threads === 1 ? "thread" : "threads"}.`;
  for (const input of [$("images"), $("folder")]) {
    input.disabled = false;
    input.addEventListener("change", () => {
      work([...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
      input.value = "";
    });
  }
  document.addEventListener("drop", async (event) => work(await droppedFiles(event.dataTransfer.items)));
  $("csv").addEventListener("click", () => {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([csv(answers, model)], { type: "text/csv" }));
    link.download = "cells.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  $("clear").addEventListener("click", () => {
    if (working) return;
    answers.length = 0;
    $("cells").replaceChildren();
    $("summary").textContent = ""; // else it would stand above the next pictures
    $("counts").hidden = true;
    $("result").hidden = true;
  });
  $("state").textContent = ready;
}

// Also while the model is loading: by default, the browser leaves the page to open the dropped file.
for (const type of ["dragover", "drop"]) document.addEventListener(type, (event) => event.preventDefault());

try {
  page(await load());
} catch (error) {
  $("state").textContent = `The model could not be loaded: ${error.message}`;
}
