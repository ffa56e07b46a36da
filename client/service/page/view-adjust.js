/** Sliders of the rerank stages, and the items that somebody pinned or left out. */

import { byId, el, spoken, swap } from "./dom.js";
import { isTouched, mostOf, untouched } from "./wanted.js";

/** @typedef {import("./wanted.js").Tuning} Tuning */

const SLIDERS = [
  {
    name: "longTail",
    label: "Long tail",
    hint: "Takes popularity out of the scores.",
    range: { min: 0, max: 2, step: 0.05 },
    words: (value) => (value ? `strength ${value.toFixed(2)}` : "off"),
  },
  {
    name: "variety",
    label: "Variety",
    hint: "Weighs unlikeness to what stands above.",
    range: { min: 0, max: 100, step: 5 },
    words: (value) => (value ? `${value} %` : "off"),
  },
  {
    name: "cap",
    label: "Cap per category",
    hint: "So many items of one category at most.",
    range: { min: 0, max: 9, step: 1 },
    words: (value) => (value ? `at most ${mostOf(value)}` : "no cap"),
  },
];

/** @type {Tuning} */
let tuning = untouched();
let tell = () => {};

/** @param {(cause: {key: string, words: string}, soon: boolean) => void} onChange `soon`: more may follow at once. */
export function bindAdjust(onChange) {
  tell = onChange;
  byId("sliders").replaceChildren(...SLIDERS.map(slider));
  byId("reset").onclick = () => change(untouched(), { key: "reset", words: "the reset" });
  byId("adjust").open = window.matchMedia("(min-width: 60rem)").matches;
}

export const currentTuning = () => tuning;

export const isPinned = (item) => tuning.pins.some((one) => one.item === item.item_id);

/** Keep an item at the place where it is, or let it go. */
export function pin(item) {
  if (isPinned(item)) {
    unrule("pins", item.item_id);
    return;
  }
  const pins = tuning.pins.filter((one) => one.item !== item.item_id && one.place !== item.rank);
  pins.push({ item: item.item_id, title: item.title, place: item.rank });
  const out = tuning.out.filter((one) => one.item !== item.item_id);
  change({ ...tuning, pins, out }, { key: "pins", words: "the pin" });
}

/** Show an item no longer. */
export function leaveOut(item) {
  const pins = tuning.pins.filter((one) => one.item !== item.item_id);
  const out = [...tuning.out, { item: item.item_id, title: item.title }];
  change({ ...tuning, pins, out }, { key: `out ${out.length}`, words: "an item was left out" });
}

function change(next, cause, soon = false) {
  tuning = next;
  byId("reset").disabled = !isTouched(tuning);
  for (const { name, words } of SLIDERS) showValue(byId(`slide-${name}`), tuning[name], words);
  showRules();
  tell(cause, soon);
}

function unrule(list, item) {
  const rest = tuning[list].filter((one) => one.item !== item);
  change({ ...tuning, [list]: rest }, { key: `${list} back ${rest.length}`, words: "a rule was taken back" });
}

function slider({ name, label, hint, range, words }) {
  const id = `slide-${name}`;
  const input = el("input", { id, type: "range", ...range, value: tuning[name], "aria-describedby": `${id}-hint` });
  input.oninput = () => {
    const cause = { key: name, words: `“${label}” was moved` };
    change({ ...tuning, [name]: Number(input.value) }, cause, true);
  };
  const output = el("output", { id: `${id}-value`, htmlFor: id }, words(tuning[name]));
  return el(
    "div",
    { className: "slider" },
    el("label", { htmlFor: id }, label),
    output,
    input,
    el("p", { id: `${id}-hint`, className: "hint" }, hint),
  );
}

function showValue(input, value, words) {
  input.value = value;
  input.setAttribute("aria-valuetext", words(value));
  byId(`${input.id}-value`).textContent = words(value);
}

function showRules() {
  const pins = [...tuning.pins].sort((a, b) => a.place - b.place);
  swap(
    byId("rules"),
    ...rules("Pinned", pins, pinned),
    ...rules("Left out", tuning.out, ({ item, title }) => rule(item, title, "out", "Show again")),
  );
}

const rules = (title, entries, make) =>
  entries.length ? [el("h3", {}, title), el("ul", { className: "rules" }, ...entries.map(make))] : [];

function rule(item, title, list, action, ...before) {
  const onclick = () => unrule(list, item);
  const button = el("button", { type: "button", className: "quiet", onclick }, action, spoken(`: ${title || item}`));
  button.dataset.key = `${list} ${item}`;
  return el("li", {}, ...before, el("span", {}, title || item), button);
}

function pinned({ item, title, place }) {
  const input = el("input", { type: "number", min: 1, max: 100, value: place, "aria-label": `Place of ${title || item}` });
  input.dataset.key = `place ${item}`;
  input.onchange = () => {
    if (!input.value || !input.checkValidity()) {
      input.value = place;
      return;
    }
    const pins = tuning.pins.map((one) => (one.item === item ? { ...one, place: Number(input.value) } : one));
    change({ ...tuning, pins }, { key: "pins", words: "the pin" });
  };
  return rule(item, title, "pins", "Unpin", input);
}
