// Makes a process answer its own CPUID instructions without some instruction sets, so that every runtime in it chooses
// kernels as it would on an older processor.
//
//   cc -O2 -shared -fPIC cpuid.c -o cpuid.so
//
// Needs a processor that can fault on CPUID ("cpuid_fault" in /proc/cpuinfo): man 2 arch_prctl, ARCH_SET_CPUID.
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(i) (UINT32_C(1) << (i))

enum { STRUCTURED_FEATURES = 7, CPUID_BYTES = 2 };

static int hides_avx_vnni;

static long set_cpuid(unsigned long enabled) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, enabled); }

// Bit numbers are those of Intel's manual, volume 2, CPUID: AVX-512 with its extensions, AMX, AVX10, and AVX-VNNI with
// its extensions.
static void hide(uint32_t subleaf, uint32_t* eax, uint32_t* ebx, uint32_t* ecx, uint32_t* edx) {
  if (subleaf == 0) {
    *ebx &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
    *ecx &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));
    *edx &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
  } else if (subleaf == 1) {
    *eax &= ~(BIT(5) | BIT(21) | BIT(23) | (hides_avx_vnni ? BIT(4) : 0));
    *edx &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
  }
}

static void answer(int number, siginfo_t* information, void* context) {
  (void)information;
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* instruction = (const uint8_t*)registers[REG_RIP];
  if (set_cpuid(1) != 0 || memcmp(instruction, "\x0f\xa2", CPUID_BYTES) != 0) {
    signal(number, SIG_DFL);  // a fault of another kind: it comes again, and ends the process
    return;
  }
  const uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
  uint32_t eax, ebx, ecx, edx;
  __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
  if (leaf == STRUCTURED_FEATURES) hide(subleaf, &eax, &ebx, &ecx, &edx);
  registers[REG_RAX] = eax;
  registers[REG_RBX] = ebx;
  registers[REG_RCX] = ecx;
  registers[REG_RDX] = edx;
  registers[REG_RIP] += CPUID_BYTES;
  set_cpuid(0);
}

// For the calling thread and those that it starts from now on; 0, or errno.
int hide_instructions(int avx_vnni_too) {
  hides_avx_vnni = avx_vnni_too;
  const struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
  if (sigaction(SIGSEGV, &action, NULL) != 0 || set_cpuid(0) != 0) return errno;
  return 0;
}
