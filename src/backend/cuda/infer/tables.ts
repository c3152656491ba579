/**
 * The tables of a pass: which tokens its rows are, where they lie in the cache, and how the rows are cut into tasks of
 * the kernels. One list of 32-bit words, sent to the device in one copy; the parts of a decoding pass lie at offsets that
 * depend on nothing but the number of rows, so that a captured graph finds them.
 */
import type { Chunk } from "../../contract/inference.js";
import { PAGE_TOKENS } from "./layout.js";

/** A stretch of a chunk that goes through the blocks at once. */
export interface Piece {
  /** Index of its chunk in the step. */
  readonly index: number;
  readonly chunk: Chunk;
  readonly from: number;
  readonly rows: number;
}

/** Sizes and offsets in words. */
export interface TableLayout {
  readonly rows: number;
  readonly ids: number;
  readonly positions: number;
  readonly pageOf: number;
  readonly slotOf: number;
  /** Rows that logits are wanted of. */
  readonly chosen: number;
  /** {first row, rows} of each task of the heads kernel. */
  readonly tasks: number;
  readonly taskCount: number;
  /** Decoding: {row, tokens in the cache, offset into pages} per row. Else {first row, rows, position, offset} per block. */
  readonly attention: number;
  readonly attentionCount: number;
  /** Page numbers, the last part. */
  readonly pages: number;
  readonly words: number;
}

/** Rows that a task of the heads kernel holds: tokens of a page, or of decoding sequences. */
export const TASK_ROWS = 64;
/**
 * Rows of a decoding task in a pass of so many. It writes to as many pages as it has rows, so few rows are cut into many tasks;
 * of many, tasks of a whole operand of the matrix units are a round of blocks of threads instead of several.
 */
export function decodeTaskRows(rows: number): number {
  return rows <= 32 ? 8 : 16;
}
/** Queries of a block of prefill's attention. */
const QUERY_BLOCK = 128;

/** Rows that a decoding pass computes for `count` sequences: few sizes, so that few graphs serve all. */
export function decodeBucket(count: number): number {
  return count <= 8 ? count : Math.ceil(count / 8) * 8;
}

/** Offsets of a pass with so many rows and pages listed. */
export function tableLayout(
  rows: number,
  taskCount: number,
  attentionWords: number,
  attentionCount: number,
  pageCount: number,
): TableLayout {
  const tasks = 5 * rows;
  const attention = tasks + 2 * taskCount;
  const pages = attention + attentionWords * attentionCount;
  return {
    rows,
    ids: 0,
    positions: rows,
    pageOf: 2 * rows,
    slotOf: 3 * rows,
    chosen: 4 * rows,
    tasks,
    taskCount,
    attention,
    attentionCount,
    pages,
    words: pages + pageCount,
  };
}

/** The layout of a decoding pass; every part but the page list has its place by the bucket alone. */
export function decodeLayout(bucket: number, pageCount: number): TableLayout {
  return tableLayout(bucket, Math.ceil(bucket / decodeTaskRows(bucket)), 3, bucket, pageCount);
}

/** Pages that a piece reads. */
export function pagesOf({ chunk, from, rows }: Piece): number {
  return Math.ceil((chunk.start + from + rows) / PAGE_TOKENS);
}

export interface Tables {
  readonly layout: TableLayout;
  readonly words: Int32Array;
}

/** Rows of one token each. Rows beyond the pieces, up to the bucket, are token 0 and see nothing. */
export function decodeTables(pieces: readonly Piece[]): Tables {
  const bucket = decodeBucket(pieces.length);
  const layout = decodeLayout(
    bucket,
    pieces.reduce((sum, piece) => sum + pagesOf(piece), 0),
  );
  const words = new Int32Array(layout.words);
  let page = 0;
  for (let row = 0; row < bucket; row++) {
    words[layout.chosen + row] = row;
    words[layout.attention + 3 * row] = row;
    const piece = pieces[row];
    if (!piece) continue;
    const position = piece.chunk.start + piece.from;
    putRow(words, layout, row, piece, piece.from);
    words[layout.attention + 3 * row + 1] = position + 1;
    words[layout.attention + 3 * row + 2] = page;
    page = putPages(words, layout, piece, page);
  }
  const taskRows = decodeTaskRows(bucket);
  for (let task = 0; task < layout.taskCount; task++) {
    const first = task * taskRows;
    words[layout.tasks + 2 * task] = first;
    // Padding writes nothing to the cache.
    words[layout.tasks + 2 * task + 1] = Math.max(0, Math.min(taskRows, pieces.length - first));
  }
  return { layout, words };
}

/**
 * Rows of several tokens of each sequence. `chosen`: rows whose logits are wanted. `exact`: for decoding's attention, which
 * takes every row as a sequence that ends with it.
 */
export function prefillTables(
  pieces: readonly Piece[],
  chosen: readonly number[],
  exact = false,
): Tables {
  const rows = pieces.reduce((sum, piece) => sum + piece.rows, 0);
  const tasks: number[] = [];
  const blocks: { row: number; rows: number; position: number; page: number }[] = [];
  let row = 0;
  let page = 0;
  for (const piece of pieces) {
    const start = piece.chunk.start + piece.from;
    cutTasks(tasks, row, start, piece.rows);
    for (let at = 0; at < piece.rows;) {
      const count = exact ? 1 : Math.min(queriesAt(start + at), piece.rows - at);
      blocks.push({ row: row + at, rows: count, position: start + at, page });
      at += count;
    }
    row += piece.rows;
    page += pagesOf(piece);
  }
  // The longest first, so that the last blocks to finish are short ones.
  blocks.sort((a, b) => b.position + b.rows - (a.position + a.rows));
  const layout = tableLayout(rows, tasks.length / 2, exact ? 3 : 4, blocks.length, page);
  const words = new Int32Array(layout.words);
  row = 0;
  page = 0;
  for (const piece of pieces) {
    for (let t = 0; t < piece.rows; t++) putRow(words, layout, row++, piece, piece.from + t);
    page = putPages(words, layout, piece, page);
  }
  words.set(chosen, layout.chosen);
  words.set(tasks, layout.tasks);
  blocks.forEach((block, i) => {
    if (exact)
      words.set([block.row, block.position + 1, block.page], layout.attention + 3 * block.row);
    else words.set([block.row, block.rows, block.position, block.page], layout.attention + 4 * i);
  });
  return { layout, words };
}

/**
 * Queries of a block that begins at a position: to the end of a page begun, else QUERY_BLOCK. So the rows that a warp takes
 * together end in one page, wherever a chunk begins; a page that comes after all of a row's tokens would leave its sums as
 * they are but for the last bits, which the matrix units round off beside factors of zero.
 */
function queriesAt(position: number): number {
  const begun = position % PAGE_TOKENS;
  return begun === 0 ? QUERY_BLOCK : PAGE_TOKENS - begun;
}

/**
 * Tasks of a piece's rows: whole pages' worth of its new tokens, so that no two blocks of threads write to one byte of a
 * page; as many together as a task holds.
 */
function cutTasks(tasks: number[], row: number, start: number, rows: number): void {
  for (let at = 0; at < rows;) {
    let end = at;
    for (;;) {
      const next = Math.min(rows, end + PAGE_TOKENS - ((start + end) % PAGE_TOKENS));
      if (next === end || (end > at && next - at > TASK_ROWS)) break;
      end = next;
    }
    tasks.push(row + at, end - at);
    at = end;
  }
}

function putRow(
  words: Int32Array,
  layout: TableLayout,
  row: number,
  { chunk }: Piece,
  t: number,
): void {
  const position = chunk.start + t;
  words[layout.ids + row] = chunk.tokens[t];
  words[layout.positions + row] = position;
  words[layout.pageOf + row] = chunk.pages[Math.floor(position / PAGE_TOKENS)];
  words[layout.slotOf + row] = position % PAGE_TOKENS;
}

function putPages(words: Int32Array, layout: TableLayout, piece: Piece, page: number): number {
  const count = pagesOf(piece);
  words.set(piece.chunk.pages.subarray(0, count), layout.pages + page);
  return page + count;
}
