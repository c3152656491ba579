/**
 * What kernels are compiled for, and what they may count on. PLANISH_CUDA_CAPABILITY names another GPU than the one that is
 * there, so that what is chosen and compiled for that one can be run and checked: 80 for Ampere's A100, 86 and 89 for smaller ones
 * and Ada, 100 and 120 for Blackwell. An older one's code is compiled to PTX for it, which the driver translates; a newer one's
 * instructions are not there, so that only its choices are followed, in code that every GPU from here on understands.
 */
import { PlanishError } from "../../common/errors.js";

/** Kibibytes of shared memory that a block may ask for, by compute capability times ten. */
const SHARED_KIBIBYTES: Readonly<Record<number, number>> = {
  80: 163,
  86: 99,
  87: 163,
  89: 99,
  90: 227,
  100: 227,
  103: 227,
  120: 99,
};

export interface Target {
  /** Compute capability times ten, by which kernels are chosen. */
  readonly capability: number;
  /** For NVRTC: `sm_…` for machine code, `compute_…` for PTX. */
  readonly architecture: string;
  readonly sharedBytesPerBlock: number;
}

/** The architecture to compile for; the "a" set of Hopper and later has its own matrix instructions. */
export function architectureOf(capability: number): string {
  return capability >= 90 ? `sm_${capability}a` : `sm_${capability}`;
}

/**
 * The GPU that is there, or the one that `asked` (PLANISH_CUDA_CAPABILITY) names.
 * Throws PlanishError when `asked` is no GPU that is known.
 */
export function targetOf(
  real: number,
  sharedBytesPerBlock: number,
  asked: string | undefined = process.env.PLANISH_CUDA_CAPABILITY,
): Target {
  if (!asked || asked === String(real))
    return { capability: real, architecture: architectureOf(real), sharedBytesPerBlock };
  const capability = Number(asked);
  if (!Object.hasOwn(SHARED_KIBIBYTES, asked))
    throw new PlanishError(
      `PLANISH_CUDA_CAPABILITY is ${JSON.stringify(asked.slice(0, 40))}; ` +
        `give one of ${Object.keys(SHARED_KIBIBYTES).join(", ")}, or leave it unset`,
    );
  return {
    capability,
    architecture: capability < real ? `compute_${capability}` : `sm_${real}`,
    sharedBytesPerBlock: Math.min(sharedBytesPerBlock, 1024 * SHARED_KIBIBYTES[capability]),
  };
}
