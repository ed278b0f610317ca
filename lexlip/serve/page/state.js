// What is searched for. Either a text as it was typed, or words with weights; and words that are forbidden or needed.
// It lives in the address, so that the browser's back button is an undo.

export const nothing = () => ({ text: "", words: null, without: {}, required: {}, penalties: {} });

const LIGHTEST = 1e-4;
const STEP = 1.5;
const ADDED = 0.8; // of the heaviest word

export const isEmpty = (state) => (state.words ? !Object.keys(state.words).length : !state.text);

const CONDITIONS = ["without", "required", "penalties"];
export const hasConditions = (state) => CONDITIONS.some((name) => Object.keys(state[name]).length);

export function fields(state, k) {
  const query = state.words ? { words: state.words } : { query: state.text };
  const lists = CONDITIONS.filter((name) => Object.keys(state[name]).length);
  return { ...query, k, ...Object.fromEntries(lists.map((name) => [name, state[name]])) };
}

// From here on by its words: what the text's vector was, changed.
export function inWords(state, found) {
  if (state.words || !found) return state;
  const words = Object.fromEntries(found.words.filter((each) => each.weight >= LIGHTEST).map(({ word, weight }) => [word, weight]));
  return { ...state, words, without: found.without, required: found.required, penalties: found.penalties };
}

const without = (map, word) => Object.fromEntries(Object.entries(map).filter(([other]) => other !== word));

export const heaviest = (state) => Math.max(LIGHTEST, ...Object.values(state.words ?? {}));

export function setWeight(state, word, weight) {
  const words = weight < LIGHTEST ? without(state.words, word) : { ...state.words, [word]: Math.round(weight * 1e4) / 1e4 };
  const required = weight < LIGHTEST ? without(state.required, word) : state.required;
  return { ...state, words, required, without: without(state.without, word) };
}

export function add(state, word) {
  const words = state.words ?? {};
  return setWeight({ ...state, words }, word, Object.keys(words).length ? ADDED * heaviest(state) : 1);
}

export const raise = (state, word) => setWeight(state, word, state.words[word] * STEP);
export const lower = (state, word) => setWeight(state, word, state.words[word] / STEP);

export function forbid(state, word) {
  const words = without(state.words ?? {}, word);
  return { ...state, words, required: without(state.required, word), without: { ...state.without, [word]: 0 } };
}

export function need(state, word) {
  const with_word = state.words?.[word] ? state : add(state, word);
  return { ...with_word, required: { ...with_word.required, [word]: 0 } };
}

// Need not be there any more: what the word weighs stays.
export const unneed = (state, word) => ({ ...state, required: without(state.required, word) });

export function forget(state, word) {
  const parts = ["words", "without", "required", "penalties"].map((name) => [name, without(state[name] ?? {}, word)]);
  return { ...state, ...Object.fromEntries(parts) };
}

export function toHash(state) {
  const lists = ["words", "without", "required", "penalties"].filter((name) => Object.keys(state[name] ?? {}).length);
  const given = new URLSearchParams(lists.map((name) => [name, JSON.stringify(state[name])]));
  if (state.text) given.set("q", state.text);
  return given.size ? `#${given}` : "";
}

export function fromHash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = nothing();
  state.text = given.get("q") ?? "";
  for (const name of ["words", "without", "required", "penalties"]) {
    try {
      const value = JSON.parse(given.get(name));
      if (value && typeof value === "object" && !Array.isArray(value)) state[name] = value;
    } catch {
      // An address that somebody shortened: the rest of it still counts.
    }
  }
  return state;
}
