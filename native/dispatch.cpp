// Chooses the instruction-set level at run time and forwards the C ABI to its table.
#include "dispatch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "planish.h"
#include "pool.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

namespace planish {
namespace {

// In the order in which they are preferred, best last, among those of one processor.
enum Level { PORTABLE, AVX2, AVX512, AMX, NEON, DOTPROD, SIMD128, RELAXED, LEVELS };
struct LevelNames {
  const char* name;
  const char* detail;
};
const LevelNames LEVEL_NAMES[LEVELS] = {
    {"portable", ""},         {"avx2", " (fma)"}, {"avx512", " (vnni, bf16)"},
    {"amx", " (int8, bf16)"}, {"neon", ""},       {"dotprod", " (neon, dot product)"},
    {"simd128", ""},          {"relaxed", ""}};

struct Machine {
  bool runs[LEVELS] = {true};
  char processor[64] = "unknown processor";
  // What was found beside the level, or why a better level was passed over.
  char note[96] = "";
};

#if defined(__x86_64__)
uint64_t enabled_state() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux keeps the tile registers off until a process asks for them.
bool request_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int ARCH_REQUEST_COMPONENT = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQUEST_COMPONENT, TILE_DATA) == 0;
#else
  return false;
#endif
}

void detect_x86(Machine& machine) {
  uint32_t a, b, c, d;
  char* name = machine.processor;
  if (__get_cpuid_max(0x80000000u, nullptr) >= 0x80000004u) {
    for (uint32_t leaf = 0; leaf < 3; leaf++) {
      uint32_t words[4];
      __cpuid(0x80000002u + leaf, words[0], words[1], words[2], words[3]);
      memcpy(name + 16 * leaf, words, 16);
    }
    name[48] = 0;
    for (size_t end = strlen(name); end > 0 && name[end - 1] == ' '; end--) name[end - 1] = 0;
  }
  if (!__get_cpuid(1, &a, &b, &c, &d)) return;
  const bool xsave = (c >> 27) & 1, fma = (c >> 12) & 1, f16c = (c >> 29) & 1, avx = (c >> 28) & 1;
  if (!xsave || !avx) return;
  const uint64_t state = enabled_state();
  uint32_t b7 = 0, c7 = 0, d7 = 0, a71 = 0;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return;
  if (a >= 1) {
    uint32_t b71, c71, d71;
    __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71);
  }
  machine.runs[AVX2] = ((b7 >> 5) & 1) && fma && f16c && (state & 0x6) == 0x6;
  const bool foundation = ((b7 >> 16) & 1) && ((b7 >> 17) & 1) && ((b7 >> 30) & 1) && ((b7 >> 31) & 1);
  const bool vnni = (c7 >> 11) & 1, bf16 = (a71 >> 5) & 1;
  const bool wide = foundation && (state & 0xe6) == 0xe6;
  machine.runs[AVX512] = machine.runs[AVX2] && wide && vnni && bf16;
  if (wide && !machine.runs[AVX512])
    snprintf(machine.note, sizeof machine.note, "AVX-512 without %s, not used", vnni ? "bf16" : "vnni");
#if defined(PL_EMULATE_AMX)
  machine.runs[AMX] = machine.runs[AVX512];
  snprintf(machine.note, sizeof machine.note, "AMX emulated, for tests only");
  return;
#endif
  const bool tiles = ((d7 >> 22) & 1) && ((d7 >> 24) & 1) && ((d7 >> 25) & 1);
  if (tiles && machine.runs[AVX512]) {
    machine.runs[AMX] = (state & 0x60000) == 0x60000 && request_tiles();
    if (!machine.runs[AMX]) snprintf(machine.note, sizeof machine.note, "AMX present, the system does not grant it");
  }
}
#endif

#if defined(__aarch64__)
// The dot product of signed bytes (FEAT_DotProd).
bool multiplies_bytes() {
#if defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#elif defined(__linux__)
  constexpr unsigned long DOT_PRODUCT = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & DOT_PRODUCT) != 0;
#elif defined(_WIN32)
  constexpr DWORD DOT_PRODUCT = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  return IsProcessorFeaturePresent(DOT_PRODUCT) != 0;
#else
  return false;
#endif
}

void detect_arm(Machine& machine) {
  snprintf(machine.processor, sizeof machine.processor, "64-bit Arm");
#if defined(__APPLE__)
  size_t size = sizeof machine.processor;
  sysctlbyname("machdep.cpu.brand_string", machine.processor, &size, nullptr, 0);
#endif
  // Every 64-bit Arm has it.
  machine.runs[NEON] = true;
  machine.runs[DOTPROD] = multiplies_bytes();
}
#endif

const Machine& machine() {
  static const Machine detected = [] {
    Machine m;
#if defined(__x86_64__)
    detect_x86(m);
#elif defined(__aarch64__)
    detect_arm(m);
#elif defined(__wasm__)
    snprintf(m.processor, sizeof m.processor, "WebAssembly");
    // A module has one level, and the engine would not have compiled one that it cannot run.
    m.runs[SIMD128] = m.runs[RELAXED] = true;
#endif
    return m;
  }();
  return detected;
}

// Levels that the build script could compile define PL_HAVE_<LEVEL>.
bool fill(Level level, KernelTable& table) {
  switch (level) {
#if defined(PL_HAVE_PORTABLE)
    case PORTABLE: portable::fill_table(table); return true;
#endif
#if defined(PL_HAVE_AVX2)
    case AVX2: avx2::fill_table(table); return true;
#endif
#if defined(PL_HAVE_AVX512)
    case AVX512: avx512::fill_table(table); return true;
#endif
#if defined(PL_HAVE_AMX)
    case AMX: amx::fill_table(table); return true;
#endif
#if defined(PL_HAVE_NEON)
    case NEON: neon::fill_table(table); return true;
#endif
#if defined(PL_HAVE_DOTPROD)
    case DOTPROD: dotprod::fill_table(table); return true;
#endif
#if defined(PL_HAVE_SIMD128)
    case SIMD128: simd128::fill_table(table); return true;
#endif
#if defined(PL_HAVE_RELAXED)
    case RELAXED: relaxed::fill_table(table); return true;
#endif
    default: (void)table; return false;
  }
}

bool usable(int level) {
  KernelTable ignored;
  return machine().runs[level] && fill(static_cast<Level>(level), ignored);
}

struct Chosen {
  KernelTable table;
  int level = -1;
  char description[320] = "";
} chosen;

void choose(int level) {
  fill(static_cast<Level>(level), chosen.table);
  chosen.level = level;
  snprintf(chosen.description, sizeof chosen.description, "%s, %s%s%s%s", machine().processor, LEVEL_NAMES[level].name,
           LEVEL_NAMES[level].detail, machine().note[0] ? "; " : "", machine().note);
}

const char* usable_names() {
  static char names[64] = "";
  if (!names[0]) {
    for (int level = 0; level < LEVELS; level++) {
      if (!usable(level)) continue;
      if (names[0]) strcat(names, ",");
      strcat(names, LEVEL_NAMES[level].name);
    }
  }
  return names;
}

}  // namespace

const KernelTable& kernels() {
  if (chosen.level < 0) pl_select(nullptr);
  return chosen.table;
}

}  // namespace planish

using namespace planish;

int pl_select(const char* level) {
  if (!level || !level[0]) {
    for (int best = LEVELS - 1; best >= 0; best--) {
      if (!usable(best)) continue;
      choose(best);
      return 0;
    }
    return fail(PL_UNSUPPORTED, "no instruction-set level was built");
  }
  for (int named = 0; named < LEVELS; named++) {
    if (strcmp(level, LEVEL_NAMES[named].name) != 0) continue;
    if (!usable(named))
      return fail(PL_UNSUPPORTED, "instruction-set level \"%s\" is not available here; this machine and build have: %s",
                  level, usable_names());
    choose(named);
    return 0;
  }
  return fail(PL_BAD_ARGUMENT, "unknown instruction-set level \"%s\"; this machine and build have: %s", level,
              usable_names());
}

const char* pl_level(void) {
  kernels();
  return LEVEL_NAMES[chosen.level].name;
}

const char* pl_description(void) {
  kernels();
  return chosen.description;
}

const char* pl_levels(void) { return usable_names(); }

int64_t pl_abi() { return PL_ABI; }

#define PL_KERNEL(name, parameters, arguments) \
  int pl_##name parameters { return kernels().name arguments; }
#include "abi/kernels.h"
#undef PL_KERNEL
