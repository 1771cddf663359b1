// The page: sends files in batches, shows rows and reasons. Every text goes in as text, never as markup.
"use strict";

const BATCH_FILES = 20; // files per request, so that rows appear while others are computed
const BATCH_BYTES = 4e6;

const at = (id) => document.getElementById(id);
const models = new Map();
const results = []; // {model, columns, row}, for the CSV
let queue = Promise.resolve();
let generation = 0; // counts how often the table was cleared
const counts = { sent: 0, done: 0 };

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

const number = (value) =>
  value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString();

async function answerOf(response) {
  const body = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(body.error);
  return body;
}

// ------------------------------------------------------------------------------------------------
// Rows

// The name without its unit, which stands beside it: band_gap_eV -> band gap (eV)
function labelOf(target) {
  const ending = `_${target.unit.replace("/", "_per_")}`;
  const bare = target.unit && target.name.endsWith(ending) ? target.name.slice(0, -ending.length) : target.name;
  const name = bare.replaceAll("_", " ");
  if (target.kind === "class") return `probability of ${name}`;
  return target.unit ? `${name} (${target.unit})` : name;
}

function showHead(model) {
  const names = ["structure"];
  for (const target of model.targets) {
    names.push(labelOf(target));
    if (target.kind !== "class" && model.calibrated) names.push("interval");
  }
  names.push("flags", "");
  const cells = names.map((name, k) => {
    const cell = element("th", name, k > 0 && k < names.length - 2 ? "number" : "");
    cell.scope = "col";
    if (name === "") cell.append(element("span", "report", "visually-hidden"));
    return cell;
  });
  at("head").replaceChildren(...cells);
}

function cell(label, content, className) {
  const node = element("td", undefined, className);
  node.dataset.label = label;
  node.append(content);
  return node;
}

function flagsOf(row) {
  const flags = element("div");
  if (row.like_training === "no") flags.append(element("span", `unlike the training crystals: ${row.unlike_because}`, "flag"));
  if (row.warnings) flags.append(element("span", row.warnings, "flag"));
  if (!flags.childNodes.length) flags.append(element("span", row.like_training === "yes" ? "none" : "–", "fine"));
  return flags;
}

function addRow(modelName, columns, row, source) {
  const model = models.get(modelName);
  const line = element("tr");
  line.append(cell("", row.id, "id"));
  for (const target of model.targets) {
    const low = row[`${target.name}_low`];
    line.append(cell(labelOf(target), number(row[`${target.name}_predicted`]), "number value"));
    if (target.kind !== "class" && model.calibrated) {
      const interval = low === null ? "–" : `${number(low)} to ${number(row[`${target.name}_high`])}`;
      line.append(cell("interval", interval, "number"));
    }
  }
  line.append(cell("flags", flagsOf(row)));
  const button = element("button", "Explain");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-label", `Explain ${row.id}`);
  button.addEventListener("click", () => toggleReport(button, line, modelName, row, source));
  line.append(cell("", button, "action"));
  at("rows").append(line);
  results.push({ model: modelName, columns, row });
}

function addReason(one) {
  const line = element("li");
  const name = one.id || one.where;
  const rest = one.reason.startsWith(name) ? one.reason.slice(name.length) : ` ${one.reason}`;
  line.append(element("b", name), document.createTextNode(rest));
  at("reasons").append(line);
  at("failed").hidden = false;
}

// ------------------------------------------------------------------------------------------------
// Reports: a form sends the structure again, and its answer fills a frame without rights

let frames = 0;

function toggleReport(button, line, model, row, source) {
  const shown = line.nextElementSibling;
  if (shown && shown.classList.contains("report")) {
    shown.remove();
    button.setAttribute("aria-expanded", "false");
    return;
  }
  const frame = element("iframe");
  frame.name = `report${++frames}`;
  frame.title = `Report on ${row.id}`;
  frame.setAttribute("sandbox", "allow-scripts");
  const report = element("tr", undefined, "report");
  const inside = element("td");
  inside.colSpan = line.children.length;
  inside.append(frame);
  report.append(inside);
  line.after(report);
  button.setAttribute("aria-expanded", "true");
  post(frame.name, { model, id: row.id, format: "html", coverage: source.coverage, disorder: source.disorder }, source);
}

function post(target, fields, source) {
  const form = element("form");
  Object.assign(form, { method: "post", action: "api/explain", enctype: "multipart/form-data", target, hidden: true });
  for (const [name, value] of Object.entries(fields)) {
    const input = element("input");
    Object.assign(input, { type: "hidden", name, value });
    form.append(input);
  }
  if (source.file) {
    const input = element("input");
    const transfer = new DataTransfer();
    transfer.items.add(source.file);
    Object.assign(input, { type: "file", name: "files", files: transfer.files });
    form.append(input);
  } else {
    const input = element("textarea");
    Object.assign(input, { name: "text", value: source.text });
    form.append(input);
  }
  document.body.append(form);
  form.submit();
  form.remove();
}

// ------------------------------------------------------------------------------------------------
// Sending

function batchesOf(files) {
  const batches = [];
  let bytes = 0;
  for (const file of files) {
    const last = batches.at(-1);
    if (!last || last.length >= BATCH_FILES || bytes + file.size > BATCH_BYTES) {
      batches.push([file]);
      bytes = file.size;
    } else {
      last.push(file);
      bytes += file.size;
    }
  }
  return batches;
}

const settings = () => ({ model: at("model").value, coverage: at("coverage").value, disorder: at("disorder").value });

async function predict(sources, chosen, started) {
  const body = new FormData();
  for (const [name, value] of Object.entries(chosen)) body.append(name, value);
  for (const source of sources) {
    if (source.file) body.append("files", source.file);
    else body.append("text", source.text);
  }
  try {
    const answer = await answerOf(await fetch("api/predict", { method: "POST", body }));
    if (started !== generation) return;
    showHead(models.get(answer.model));
    for (const row of answer.rows) addRow(answer.model, answer.columns, row, { ...sources[row.file], ...chosen });
    answer.left_out.forEach(addReason);
    at("results").hidden = results.length === 0;
  } catch (error) {
    if (started !== generation) return;
    const names = sources.map((source) => (source.file ? source.file.name : "the pasted text")).join(", ");
    addReason({ id: names, reason: error.message });
  }
  counts.done += sources.length;
  progress();
}

function progress() {
  const failed = at("reasons").children.length;
  const busy = counts.done < counts.sent;
  const many = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const said = `${many(results.length, "structure")} predicted` + (failed ? `, ${failed} not` : "");
  say(busy ? `Reading file ${counts.done + 1} of ${counts.sent} … ${said}` : said);
  at("results").setAttribute("aria-busy", String(busy));
}

function enqueue(batches) {
  const [chosen, started] = [settings(), generation];
  const shown = results.length ? results[0].model : chosen.model;
  if (shown !== chosen.model) {
    clear();
    return enqueue(batches);
  }
  for (const batch of batches) {
    counts.sent += batch.length;
    queue = queue.then(() => (started === generation ? predict(batch, chosen, started) : undefined));
  }
  progress();
}

function addFiles(files) {
  if (files.length) enqueue(batchesOf([...files]).map((batch) => batch.map((file) => ({ file }))));
}

function clear() {
  generation++;
  results.length = counts.sent = counts.done = 0;
  at("rows").replaceChildren();
  at("reasons").replaceChildren();
  at("results").hidden = at("failed").hidden = true;
  say("");
}

// ------------------------------------------------------------------------------------------------
// CSV

function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(Number(value.toPrecision(7)));
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // never a formula
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download() {
  const columns = results[0].columns;
  const lines = [columns, ...results.map(({ row }) => columns.map((name) => row[name]))];
  const text = lines.map((line) => line.map(csvCell).join(",") + "\r\n").join("");
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = `${results[0].model}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ------------------------------------------------------------------------------------------------
// Start

function listen() {
  const drop = at("drop");
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    addFiles(event.dataTransfer.files);
  });
  at("files").addEventListener("change", () => {
    addFiles(at("files").files);
    at("files").value = "";
  });
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = at("text").value;
    if (text.trim()) enqueue([[{ text }]]);
    else say("Paste the text of a CIF first.", true);
  });
  at("download").addEventListener("click", download);
  at("clear").addEventListener("click", clear);
}

async function start() {
  listen();
  try {
    for (const model of await answerOf(await fetch("api/models"))) {
      models.set(model.name, model);
      const option = element("option", `${model.name}: ${model.targets.map(labelOf).join(", ")}`);
      option.value = model.name;
      at("model").append(option);
    }
    at("version").textContent = `sitenet ${(await answerOf(await fetch("api/info"))).version} ·`;
  } catch (error) {
    say(`The server does not answer: ${error.message}`, true);
  }
}

start();
