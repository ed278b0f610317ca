// The page: what is typed, dropped and clicked becomes a state (state.js), a state becomes a search, its answer a grid.

import * as api from "./api.js";
import { openDetail, redrawDetail } from "./detail.js";
import { after, count, find, isWhole, make, shown } from "./dom.js";
import { openMenu } from "./menu.js";
import * as queries from "./state.js";
import { stopSuggesting } from "./suggest.js";
import { isHeld, newQuery, showTerms } from "./terms.js";
import { showTiles } from "./tiles.js";

const PAGE = 60;
const LIVE = 180; // milliseconds after a key before it is searched for
const FACETS = 14;
const EXAMPLES = 18;
const LONGEST = 30_000; // letters of an address

let about = { documents: 0, photos: false, patches: null, max_k: PAGE };
let state = queries.nothing();
let hits = [];
let wanted = PAGE;
let running = null;
let sample = null; // the address of the photo that was dropped

const page = () => Math.min(PAGE, about.max_k); // photos that are asked for first, and then once more

const text = find("text");
const context = () => ({ state, photos: about.photos, patches: about.patches, change });

// --- searching ---

function status(message, wrong = false) {
  find("status").textContent = message;
  find("status").classList.toggle("wrong", wrong);
}

async function run(ask, keepTyping = false) {
  running?.abort();
  const mine = (running = new AbortController());
  find("results").classList.add("waiting");
  const begin = performance.now();
  try {
    const found = await ask(mine.signal);
    if (mine.signal.aborted) return;
    state = queries.inWords(state, found.query);
    hits = found.hits;
    draw(performance.now() - begin, found.unknown_words);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof api.Refused)) throw error;
    if (!keepTyping) hits = [];
    if (!keepTyping) draw(0, []);
    status(error.message, true);
  } finally {
    if (mine === running) find("results").classList.remove("waiting");
  }
}

// `typed`: while a text is being written, which says nothing about what it has not yet become.
function search(typed = false) {
  find("clear").hidden = queries.isEmpty(state) && !text.value && !queries.hasConditions(state);
  if (queries.isEmpty(state)) return start();
  const asked = queries.fields(state, wanted);
  return run((signal) => api.search(asked, signal), typed);
}

const soon = after(LIVE, () => {
  slide.cancel();
  dropSample();
  newQuery();
  state = { ...queries.nothing(), text: text.value.trim() };
  wanted = page();
  remember(true);
  search(true);
});

const slide = after(60, () => search(true));

// Every click on a word or a slider ends here.
function change(next, sliding = false) {
  state = next;
  wanted = page();
  if (sliding) return slide();
  slide.cancel();
  remember();
  return search();
}

// Another search begins: what was about to run would take its place.
function leave() {
  soon.cancel();
  slide.cancel();
  stopSuggesting();
  dropSample();
  newQuery();
}

async function byPhoto(file) {
  if (!file?.type.startsWith("image/")) return status("That is no photo.", true);
  leave();
  sample = URL.createObjectURL(file);
  Object.assign(find("sample"), { src: sample, hidden: false, alt: "The photo that is searched by" });
  text.value = "";
  state = queries.nothing();
  wanted = page();
  await run((signal) => api.searchByPhoto(file, wanted, signal));
  find("clear").hidden = false;
  remember();
}

function similar(hit) {
  leave();
  if (about.photos) Object.assign(find("sample"), { src: api.thumbnail(hit.id, 160), hidden: false, alt: `Like ${hit.id}` });
  text.value = "";
  change({ ...queries.nothing(), words: Object.fromEntries(hit.words.map(({ word, weight }) => [word, weight])) });
}

function dropSample() {
  if (sample) URL.revokeObjectURL(sample);
  sample = null;
  find("sample").hidden = true;
  find("sample").removeAttribute("src");
}

function remember(replace = false) {
  const address = location.pathname + queries.toHash(state);
  if (address.length > LONGEST) return; // a vector of thousands of words is no address
  if (location.pathname + location.hash === address) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
}

function recall() {
  leave();
  state = queries.fromHash(location.hash);
  text.value = state.text;
  wanted = page();
  search();
}

// --- drawing ---

function draw(milliseconds, unknown) {
  const now = context();
  if (!isHeld()) showTerms(state, change);
  showTiles(hits, now, (hit) => openDetail(hits, hit, context(), similar));
  redrawDetail(now);
  showFacets();
  find("empty").hidden = hits.length > 0;
  find("more").hidden = hits.length < wanted || wanted >= about.max_k;
  document.title = state.text ? `${state.text} · Photos` : "Photos";
  if (!hits.length) noHits();
  const time = milliseconds ? ` · ${Math.max(1, Math.round(milliseconds))} ms` : "";
  const ignored = unknown.length ? ` · not in the vocabulary: ${unknown.join(", ")}` : "";
  status(hits.length ? `${hits.length === wanted ? "Best " : ""}${count(hits.length, "photo")}${time}${ignored}` : "");
}

// The commonest words among the hits that are not searched for already.
function showFacets() {
  const counts = new Map();
  for (const hit of hits) for (const { word } of hit.words) counts.set(word, (counts.get(word) ?? 0) + 1);
  const known = new Set([...Object.keys(state.words ?? {}), ...Object.keys(state.without)]);
  const common = [...counts].filter(([word, number]) => number > 1 && !known.has(word) && isWhole(word));
  common.sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
  find("facets").replaceChildren(...common.slice(0, FACETS).map(([word, number]) => wordChip(word, number)));
}

function wordChip(word, number) {
  const chip = make("button", { type: "button", className: "chip", "aria-haspopup": "menu", "aria-expanded": "false" },
    shown(word), make("small", {}, number.toLocaleString("en")));
  chip.dataset.word = word;
  chip.addEventListener("click", () => openMenu(chip, word, state, change));
  return chip;
}

function message(title, ...parts) {
  find("empty").replaceChildren(make("h1", {}, title), ...parts);
  find("empty").hidden = false;
}

function noHits() {
  const said = (list, what) => {
    const words = Object.keys(list).map(shown);
    return words.length ? [`${words.join(", ")} ${words.length > 1 ? "are" : "is"} ${what}`] : [];
  };
  const reasons = [...said(state.without, "forbidden"), ...said(state.required, "needed")];
  const why = reasons.length ? `Perhaps because ${reasons.join(" and ")}.`
    : "Other words may do: those of the vocabulary appear while you write.";
  message("No photo has these words", make("p", {}, why));
}

async function start() {
  running?.abort();
  hits = [];
  showTiles([], context());
  find("facets").replaceChildren();
  find("more").hidden = true;
  document.title = "Photos";
  showTerms(state, change);
  status("");
  if (!about.documents) {
    return message("There are no photos yet", make("p", {}, "Fill the index with a folder: ", make("code", {}, "lexlip sync PHOTOS --index INDEX"), ". They appear here while it runs."));
  }
  if (queries.hasConditions(state)) {
    return message("Nothing to look for", make("p", {}, "The search only says what is left out or needed: add a word, or take a sign back."));
  }
  const notes = [make("p", {}, "Write what is on the photo, or drop one to find others like it.")];
  if (!about.photos) notes.push(make("p", {}, "Where the photos lie is not known here, so only their words are shown: start with ", make("code", {}, "lexlip serve --photos FOLDER"), "."));
  message(count(about.documents, "photo"), ...notes);
  const { words } = await api.suggest("", EXAMPLES).catch(() => ({ words: [] }));
  if (!words.length || !queries.isEmpty(state)) return;
  find("empty").append(make("div", { className: "try" }, ...words.map(({ word, documents }) => {
    const chip = wordChip(word, documents);
    const plain = chip.cloneNode(true);
    plain.removeAttribute("aria-haspopup");
    plain.removeAttribute("aria-expanded");
    plain.addEventListener("click", () => { text.value = word; submit(); });
    return plain;
  })));
}

// --- what people do ---

function submit() {
  leave();
  state = { ...queries.nothing(), text: text.value.trim() };
  wanted = page();
  remember();
  return search();
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
text.addEventListener("input", soon);
find("clear").addEventListener("click", () => {
  text.value = "";
  submit();
  text.focus();
});
find("more").addEventListener("click", () => {
  wanted = Math.min(wanted + PAGE, about.max_k);
  search(true);
});
find("file").addEventListener("change", (event) => {
  byPhoto(event.target.files[0]);
  event.target.value = "";
});

const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragover", (event) => {
  if (!hasFile(event)) return;
  event.preventDefault();
  find("drop").hidden = false;
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("drop").hidden = true; });
addEventListener("drop", (event) => {
  find("drop").hidden = true;
  if (!hasFile(event)) return;
  event.preventDefault();
  byPhoto(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
  if (file) byPhoto(file);
});
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, dialog, #menu");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    text.focus();
    text.select();
  }
});
addEventListener("popstate", recall);

try {
  about = await api.about();
} catch (error) {
  status(error.message, true);
}
if (!running) recall();
else if (hits.length) draw(0, []); // of a photo that was dropped before it was known what there is
if (queries.isEmpty(state) && matchMedia("(pointer: fine)").matches) text.focus();
