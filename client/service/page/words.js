/** The service's names of things, in plain words. */

const DONE = {
  view: "viewed",
  cart: "put in the cart",
  purchase: "bought",
  rating: "rated",
  review: "reviewed",
  checkin: "visited",
  tip: "left a tip",
  query: "searched",
  other: "other",
};
const BASIS = {
  history: "from the history",
  query: "from the wish in words",
  "history and query": "from the history and the wish",
};

/** @param {string} kind Of event. */
export const done = (kind) => DONE[kind] ?? kind;

/** `viewed, bought`: each kind once. */
export const allDone = (kinds) => [...new Set(kinds)].map(done).join(", ");

/** What a list was made from. */
export function basisInWords(basis, user) {
  return BASIS[basis] ?? (user ? "what is popular: nothing is held of this user" : "what is popular");
}

/** The item's title; one without goes by its id. */
export const nameOf = (item) => item.title || item.item_id;

/** Whether and by whom the release was signed. */
export const signature = (release) =>
  release.signed ? "Signed by a trusted coordinator" : "Unsigned: a local run";

const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** @param {number} seconds UTC. */
export const moment = (seconds) => DATE.format(new Date(1000 * seconds));
