/** What a comparison finds out: one record per method, kept as JSON, and the document of the whole. */
import { z } from "zod";

const measure = z.object({ value: z.number(), stderr: z.number().optional() });

const rate = z.object({ median: z.number(), min: z.number(), max: z.number() });

const taskResult = z.object({
  task: z.string(),
  items: z.number(),
  available: z.number(),
  metrics: z.partialRecord(z.enum(["acc", "acc_norm", "perplexity"]), measure),
  customary: z.enum(["acc", "acc_norm"]),
  seconds: z.number(),
});
export type ComparedTask = z.infer<typeof taskResult>;

export const methodResultSchema = z.object({
  /** As the user named it. */
  name: z.string(),
  /** Why there is nothing else: the method cannot serve this model or scheme. */
  refused: z.string().optional(),
  /** Of quantized models. */
  method: z.string().optional(),
  preset: z.string().optional(),
  rounding: z.string().optional(),
  scheme: z.string().optional(),
  recipe: z.record(z.string(), z.unknown()).optional(),
  fallbacks: z.array(z.string()).optional(),
  /** Directory of the artifact, relative to the comparison's. */
  artifact: z.string().optional(),
  /** Bytes of tensors. */
  bytes: z.number().optional(),
  /** Wall-clock seconds of quantizing, from reading the model to the finished artifact. */
  quantizeSeconds: z.number().optional(),
  /** Largest resident memory of the process until then, bytes. */
  peakMemoryBytes: z.number().optional(),
  perplexity: z.number().optional(),
  /** KL(full precision ‖ this), nats per token. */
  kl: measure.optional(),
  /** Share of tokens whose likeliest next token is the full-precision model's. */
  topAgreement: measure.optional(),
  /** Mean relative error of states after each block. */
  blockErrors: z.array(z.number()).optional(),
  evaluateSeconds: z.number().optional(),
  /** What it continues a prompt with, its likeliest token every time. */
  answer: z.object({ prompt: z.string(), text: z.string() }).optional(),
  /** Tokens per second in the engine, and how many times as fast as the original in the same run. */
  speed: z
    .object({ prefill: rate, decode: rate, prefillRatio: z.number(), decodeRatio: z.number() })
    .optional(),
  /** Why there is no speed. */
  speedReason: z.string().optional(),
  tasks: z.array(taskResult).optional(),
  /** What computed them: the engine, or the simulated model and why. */
  tasksBy: z.string().optional(),
  /** Mean over tasks of the customary metric; present when all tasks are done. */
  average: measure.optional(),
});
export type MethodResult = z.infer<typeof methodResultSchema>;

export const comparisonSchema = z.object({
  formatVersion: z.literal(1),
  planishVersion: z.string(),
  model: z.object({
    name: z.string(),
    path: z.string(),
    hash: z.string(),
    /** Bytes of tensors as stored. */
    bytes: z.number(),
  }),
  scheme: z.string(),
  seed: z.number(),
  /** What methods calibrated on; numbers where all had to take the same, else each took its preset's. */
  calibration: z.object({
    text: z.string(),
    samples: z.number().optional(),
    seqLen: z.number().optional(),
  }),
  /** Where perplexity and divergence were measured. */
  text: z.object({ name: z.string(), windows: z.number(), seqLen: z.number() }),
  /** Items of each task that were scored at most; absent: all. */
  limit: z.number().optional(),
  machine: z.object({
    processor: z.string(),
    cores: z.number(),
    memoryBytes: z.number(),
    platform: z.string(),
    node: z.string(),
    backend: z.string(),
  }),
  /** What the table leaves out, and why. */
  remarks: z.array(z.string()),
  methods: z.array(methodResultSchema),
});
export type Comparison = z.infer<typeof comparisonSchema>;
