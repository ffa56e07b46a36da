/** How two lists of items differ. Lists are those of the service: `{item_id, title, rank}`. */

/**
 * Where each item stood before.
 *
 * @returns {{was: Map<string, number>, left: {title: string, rank: number}[], moved: number, entered: number}}
 *     `left`: items of `before` that are no longer there.
 */
export function movesOf(before, now) {
  const was = new Map(before.map((item) => [item.item_id, item.rank]));
  const still = new Set(now.map((item) => item.item_id));
  return {
    was,
    left: before.filter((item) => !still.has(item.item_id)),
    moved: now.filter((item) => was.has(item.item_id) && was.get(item.item_id) !== item.rank).length,
    entered: now.filter((item) => !was.has(item.item_id)).length,
  };
}

/** @returns {{shared: number, of: number}} Items in both lists, and the length of the longer. */
export function overlap(left, right) {
  const ids = new Set(left.map((item) => item.item_id));
  const shared = right.filter((item) => ids.has(item.item_id)).length;
  return { shared, of: Math.max(left.length, right.length) };
}
