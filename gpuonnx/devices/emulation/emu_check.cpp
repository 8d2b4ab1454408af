// Checked memory. Kernels are compiled with -fsanitize=thread and linked without it: the __tsan_* calls come here, where bounds,
// races (happens-before by barrier and warp epochs) and reads of unwritten shared memory are looked for.
#define EMU_RUNTIME
#include "emu_rt.h"

#include <sys/mman.h>
#include <sys/types.h>
#include <map>

struct Cell {
  uint32_t write_epoch, read_epoch;
  uint16_t writer, reader;
  uint32_t writer_warp, reader_warp;
  uint8_t atomic;
  uint32_t write_launch, write_block, read_launch, read_block;
};
struct Allocation { char* p; size_t bytes; Cell* cells; };
struct Image { char *low, *high; };
static std::map<char*, Allocation> allocations;
static Allocation* last;
static std::vector<Image> images;

extern "C" {
void emu_register(void* p, size_t bytes) {
  void* cells = mmap(nullptr, (bytes + 1) * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  allocations[(char*)p] = {(char*)p, bytes, (Cell*)cells};
  last = nullptr;
}
void emu_unregister(void* p) {
  auto it = allocations.find((char*)p);
  if (it == allocations.end()) return;
  munmap(it->second.cells, (it->second.bytes + 1) * sizeof(Cell));
  allocations.erase(it);
  last = nullptr;
}
void emu_image(void* low, void* high) { images.push_back({(char*)low, (char*)high}); }
}

static Allocation* find(const char* a) {
  if (last && a >= last->p && a < last->p + last->bytes) return last;
  auto it = allocations.upper_bound((char*)a);
  if (it == allocations.begin()) return nullptr;
  --it;
  return a < it->second.p + it->second.bytes ? last = &it->second : nullptr;
}

static bool readable(const char* a, size_t n) {
  if (a >= (char*)fibers.data() && a < (char*)(fibers.data() + fibers.size())) return true;
  if (a >= (char*)&emu && a < (char*)(&emu + 1)) return true;
  for (auto& m : images)
    if (a >= m.low && a + n <= m.high) return true;
  return false;
}

static void out_of_bounds(const char* a, size_t n, bool write, void* pc) {
  Allocation* near = nullptr;
  auto it = allocations.upper_bound((char*)a);
  if (it != allocations.begin()) near = &(--it)->second;
  emu_fail("out of bounds %s of %zu bytes at %p (%zd past the start of the nearest allocation of %zu bytes; pc %p)", write ? "write" : "read", n, a,
           near ? (ssize_t)(a - near->p) : (ssize_t)-1, near ? near->bytes : 0, pc);
}

static bool ordered(uint32_t when, unsigned thread, uint32_t warp_epoch, uint32_t launch, uint32_t block, bool shared) {
  if (launch != launch_number) return true;
  if (block != block_number) return shared;
  unsigned self = current->thread.flat;
  return thread == self || when < epoch || (thread / 32 == self / 32 && warp_epoch < current->warp_epoch);
}

static void track(Allocation* m, const char* a, size_t n, bool write, bool atomic, void* pc) {
  bool shared = a >= arena && a < arena + ARENA;
  const char* where = shared ? "shared" : "global";
  Cell* c = m->cells + (a - m->p);
  for (size_t i = 0; i < n; ++i, ++c) {
    if (c->write_launch && !(atomic && c->atomic) && !ordered(c->write_epoch, c->writer, c->writer_warp, c->write_launch, c->write_block, shared))
      emu_fail("race: %s of %zu bytes at %s+%zd conflicts with %s by thread %u of block %u (pc %p)", write ? "write" : "read", n, where, a - m->p,
               c->atomic ? "atomic" : "write", c->writer, c->write_block, pc);
    if (write && !atomic && c->read_launch && !ordered(c->read_epoch, c->reader, c->reader_warp, c->read_launch, c->read_block, shared))
      emu_fail("race: write of %zu bytes at %s+%zd conflicts with read by thread %u of block %u (pc %p)", n, where, a - m->p, c->reader,
               c->read_block, pc);
    if (!write && shared && !c->write_launch) emu_fail("uninitialised: read of %zu bytes at shared+%zd (pc %p)", n, a - m->p, pc);
    if (write) {
      c->write_epoch = epoch, c->writer = current->thread.flat, c->writer_warp = current->warp_epoch;
      c->atomic = atomic, c->write_launch = launch_number, c->write_block = block_number;
    } else {
      c->read_epoch = epoch, c->reader = current->thread.flat, c->reader_warp = current->warp_epoch;
      c->read_launch = launch_number, c->read_block = block_number;
    }
  }
}

static void access(const char* a, size_t n, bool write, bool atomic, void* pc) {
  if (!current || !check_level || failed) return;
  char* stack = stacks + (size_t)current->stack * STACK;
  if (a >= stack && a < stack + STACK) return;
  Allocation* m = find(a);
  if (!m || a + n > m->p + m->bytes) {
    if (write || !readable(a, n)) out_of_bounds(a, n, write, pc);
    return;
  }
  if (check_level > 1) track(m, a, n, write, atomic, pc);
}

// The target may change at any time from the start of a copy to its wait: it is written at both, and unwritten between them.
void check_copy(const AsyncCopy& copy, bool starting, void* pc) {
  if (copy.valid) access(copy.from, copy.valid, false, false, pc);
  access(copy.to, copy.bytes, true, false, pc);
  Allocation* m = starting && check_level > 1 && !failed ? find(copy.to) : nullptr;
  for (size_t i = 0; m && i < copy.bytes; ++i) m->cells[copy.to - m->p + i].write_launch = 0;
}

#define PC __builtin_return_address(0)
#define SIZED(n)                                                                         \
  void __tsan_read##n(void* a) { access((char*)a, n, false, false, PC); }                \
  void __tsan_write##n(void* a) { access((char*)a, n, true, false, PC); }                \
  void __tsan_unaligned_read##n(void* a) { access((char*)a, n, false, false, PC); }      \
  void __tsan_unaligned_write##n(void* a) { access((char*)a, n, true, false, PC); }      \
  void __tsan_volatile_read##n(void* a) { access((char*)a, n, false, false, PC); }       \
  void __tsan_volatile_write##n(void* a) { access((char*)a, n, true, false, PC); }
extern "C" {
SIZED(1) SIZED(2) SIZED(4) SIZED(8) SIZED(16)
void __tsan_read_range(void* a, size_t n) { access((char*)a, n, false, false, PC); }
void __tsan_write_range(void* a, size_t n) { access((char*)a, n, true, false, PC); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* to, const void* from, size_t n) { access((const char*)from, n, false, false, PC); access((char*)to, n, true, false, PC); return __builtin_memcpy(to, from, n); }
void* __tsan_memset(void* to, int v, size_t n) { access((char*)to, n, true, false, PC); return __builtin_memset(to, v, n); }
void emu_atomic(void* a, size_t n) { access((char*)a, n, true, true, PC); }
}
