// What the runtime (emu_rt.cpp, emu_check.cpp) and the compiled kernels share.
#pragma once
#include <cstddef>
#include <cstdint>

struct EmuDim { unsigned x, y, z; };
struct EmuThread { EmuDim tid; unsigned flat, lane, warp; };
struct EmuContext { EmuThread* thread; EmuDim block, threads, grid; void* dynamic; };

enum EmuOp { EMU_SYNCWARP = 1, EMU_SHFL, EMU_BALLOT, EMU_MATCH, EMU_MMA };
typedef void (*EmuCollective)(void** lanes, unsigned mask);
typedef void (*EmuKernel)(long long* ctx, const long long* args);

extern "C" {
extern EmuContext emu;
void emu_barrier(int line, int predicate, int out[2]);
uint64_t emu_warp(int op, int line, unsigned mask, uint64_t value, int source, EmuCollective fn, void* arg);
[[noreturn]] void emu_fail(const char* format, ...);
void* emu_shared(const void* key, size_t bytes, size_t align);
void emu_atomic(void* p, size_t bytes);
void emu_async_copy(void* to, const void* from, size_t bytes, size_t valid);
void emu_async_commit();
void emu_async_wait(unsigned pending);
}

#ifdef EMU_RUNTIME
#include <vector>
struct AsyncCopy { char* to; const char* from; size_t bytes, valid; unsigned group; };
struct Fiber {
  EmuThread thread;
  uint8_t state;
  int op, line, source;
  unsigned mask;
  uint64_t value, result;
  void *arg, *sp;
  int stack;
  uint32_t warp_epoch;
  unsigned committed;
  std::vector<AsyncCopy> copies;
#ifdef EMU_UCONTEXT
  void* context;
#endif
};
constexpr size_t STACK = 64 << 10, ARENA = 228 << 10, SHARED_LIMIT = 227 << 10;
extern std::vector<Fiber> fibers;
extern Fiber* current;
extern char *stacks, *arena;
extern int check_level;
extern unsigned epoch, launch_number, block_number;
extern bool failed;
#endif
