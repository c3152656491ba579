// What both attention kernels share. Weights and scores are kept in powers of two; a value's scale is part of its
// weight: w = score + log₂(scale), so that the largest weight is 1 and halves lose nothing to a small scale. The sum
// that divides takes the scale out again.
#pragma once
#include "engine/engine.cuh"

#ifndef DIM
#define DIM 128
#endif
#ifndef BITS
#define BITS 4
#endif
#ifndef OUT16
#define OUT16 0
#endif

typedef PageLayout<DIM, BITS> Page;

#define LOG2E 1.4426950408889634f
