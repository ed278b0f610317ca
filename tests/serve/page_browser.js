// As little of a browser as the page's scripts touch, for Node.

class Thing extends EventTarget {
  constructor(id = "") { super(); Object.assign(this, { id, children: [], dataset: {}, attributes: {}, style: {}, value: "",
    hidden: false, textContent: "", className: "", classList: { toggle() {}, add() {}, remove() {}, contains: () => false } }); }
  get type() { return this._type; } set type(v) { this._type = v; } get onclick() { return this._click; } set onclick(v) { this._click = v; }
  append(...all) { this.children.push(...all.filter((each) => each instanceof Thing)); this.textContent += all.filter((each) => typeof each === "string").join(""); }
  replaceChildren(...all) { this.children = []; this.textContent = ""; this.append(...all); }
  setAttribute(name, value) { this.attributes[name] = value; } getAttribute(name) { return this.attributes[name] ?? null; }
  removeAttribute(name) { delete this.attributes[name]; } focus() {} closest() { return null; } remove() {}
  querySelector() { return null; } querySelectorAll() { return []; } showPopover() {} hidePopover() {} contains() { return false; }
  getBoundingClientRect() { return { left: 0, top: 0, bottom: 0, width: 0, height: 0 }; } get firstElementChild() { return this.children[0]; }
}
const things = {}, page = new EventTarget();
globalThis.find = (id) => (things[id] ??= new Thing(id));
globalThis.document = { getElementById: find, createElement: (tag) => Object.assign(new Thing(), { tagName: tag.toUpperCase() }),
  createElementNS: () => new Thing(), querySelectorAll: () => [], body: new Thing(), activeElement: null, title: "" };
globalThis.addEventListener = page.addEventListener.bind(page);
globalThis.fire = (on, name, more = {}) => (on ?? page).dispatchEvent(Object.assign(new Event(name), more));
globalThis.location = { pathname: "/", hash: "" };
globalThis.history = { replaceState() {}, pushState() {} };
globalThis.matchMedia = () => ({ matches: false });
globalThis.innerHeight = globalThis.innerWidth = 1000;
URL.createObjectURL = () => "blob:1";
URL.revokeObjectURL = () => {};
globalThis.texts = (thing) => [thing.textContent, ...thing.children.flatMap(texts)].filter(Boolean);
globalThis.sleep = (time) => new Promise((done) => setTimeout(done, time));
globalThis.asked = [];
globalThis.answers = { "/about": { documents: 3, photos: true, patches: null, max_k: 10 }, "/words": { words: [] },
  "/search": { hits: [], unknown_words: [], query: { words: [], without: {}, required: {}, penalties: {} } } };
globalThis.fetch = async (path, given) => {
  asked.push([path, given?.body]);
  return { ok: true, json: async () => structuredClone(answers[path.split("?")[0]]) };
};
