/**
 * The plane that people decide on: divergence from the original against size, and against decoding speed. A method is among
 * the best of one where no other is as good in both and better in one.
 */
import { formatBytes } from "../../common/format.js";
import { WORRYING_KL } from "../verdict.js";
import type { Comparison, MethodResult } from "./result.js";

export interface PlanePoint {
  readonly name: string;
  /** Nats a token; the original itself has 0. */
  readonly kl: number;
  readonly perplexity?: number;
  readonly bytes: number;
  /** Tokens per second. */
  readonly decode?: number;
  /** Nothing else is as near and as small, or as near and as fast. */
  readonly best: readonly ("size" | "speed")[];
}

/** Every method with a divergence and a size; the original counts as a point, too. */
export function planePoints({ methods }: Pick<Comparison, "methods">): PlanePoint[] {
  const points = methods.flatMap((m) => {
    const kl = m.kl?.value ?? (isOriginal(m) ? 0 : undefined);
    if (kl === undefined || m.bytes === undefined) return [];
    const { name, perplexity, bytes, speed } = m;
    return [{ name, kl, perplexity, bytes, decode: speed?.decode.median }];
  });
  const onFront = (of: readonly Axis[], one: Axis): boolean =>
    !of.some(
      (other) =>
        other.kl <= one.kl &&
        other.cost <= one.cost &&
        (other.kl < one.kl || other.cost < one.cost),
    );
  const sizes = points.map(({ kl, bytes }) => ({ kl, cost: bytes }));
  const speeds = points.flatMap(({ kl, decode }) => (decode ? [{ kl, cost: 1 / decode }] : []));
  return points.map((point, i): PlanePoint => ({
    ...point,
    best: [
      ...(onFront(sizes, sizes[i]) ? (["size"] as const) : []),
      ...(point.decode && onFront(speeds, { kl: point.kl, cost: 1 / point.decode })
        ? (["speed"] as const)
        : []),
    ],
  }));
}

interface Axis {
  readonly kl: number;
  readonly cost: number;
}

function isOriginal({ method, perplexity, refused }: MethodResult): boolean {
  return method === undefined && refused === undefined && perplexity !== undefined;
}

/** What the plane says, in sentences. Nothing where there are not two methods to compare. */
export function planeVerdict(comparison: Pick<Comparison, "methods">): string[] {
  const quantized = new Set(
    comparison.methods.filter(({ method }) => method !== undefined).map(({ name }) => name),
  );
  const points = planePoints(comparison).filter(({ name }) => quantized.has(name));
  if (points.length < 2) return [];
  const nearest = points.reduce((a, b) => (b.kl < a.kl ? b : a));
  const smallest = points.reduce((a, b) => (b.bytes < a.bytes ? b : a));
  const sentences = [
    `${nearest.name} is nearest to the original: ${klText(nearest)} at ${formatBytes(nearest.bytes)}` +
      (nearest.kl > WORRYING_KL
        ? `, and even that is far: above ${WORRYING_KL} answers suffer.`
        : "."),
  ];
  if (smallest.bytes < nearest.bytes)
    sentences.push(
      `${smallest.name} is smallest: ${formatBytes(smallest.bytes)} at ${klText(smallest)}.`,
    );
  const timed = points.filter((p) => p.decode !== undefined);
  if (timed.length > 1) {
    const fastest = timed.reduce((a, b) => ((b.decode ?? 0) > (a.decode ?? 0) ? b : a));
    sentences.push(
      `${fastest.name} decodes fastest: ${(fastest.decode ?? 0).toFixed(0)} tokens/s at ${klText(fastest)}.`,
    );
  }
  const beaten = points.filter(({ best }) => best.length === 0).map(({ name }) => name);
  if (beaten.length > 0)
    sentences.push(
      `Nothing speaks for ${beaten.join(", ")} here: something else is as near and at least as small${timed.length > 1 ? " and as fast" : ""}.`,
    );
  return sentences;
}

function klText({ kl }: PlanePoint): string {
  return `KL ${kl.toPrecision(3)} nats a token`;
}
