// Fibers, barriers and warp rendezvous: one block at a time, every CUDA thread a fiber with its own stack.
#define EMU_RUNTIME
#include "emu_rt.h"

#include <sys/mman.h>
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

enum State : uint8_t { NEW, READY, AT_BARRIER, AT_WARP, DONE };
enum Order { FORWARD, REVERSE, SHUFFLED, UNFAIR };

extern "C" {
EmuContext emu;
char emu_error[2048];
void emu_register(void* p, size_t bytes);
void emu_unregister(void* p);
}
std::vector<Fiber> fibers;
Fiber* current;
char *stacks, *arena;
int check_level;
unsigned epoch = 1, launch_number, block_number;
bool failed;

static std::vector<int> free_stacks;
static std::vector<unsigned> run_queue;
static std::mt19937 generator;
static EmuKernel kernel;
static long long* kernel_ctx;
static const long long* kernel_args;
static void* main_sp;
static int threads, live, waiting, barrier_line, count, barrier_out[2], order;
struct Shared { const void* key; char* p; };
static std::vector<Shared> shared_blocks;
static size_t shared_end, shared_total;

// ---- switching -------------------------------------------------------------------------------------------------------
#ifdef EMU_UCONTEXT
static ucontext_t main_context;
static void to_fiber(Fiber* f) { swapcontext(&main_context, (ucontext_t*)f->context); }
static void to_main(Fiber* f) { swapcontext((ucontext_t*)f->context, &main_context); }
#else
extern "C" void emu_switch(void** save, void* to);
asm(R"(
.text
.globl emu_switch
.type emu_switch,@function
emu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emu_switch,.-emu_switch
)");
static void to_fiber(Fiber* f) { emu_switch(&main_sp, f->sp); }
static void to_main(Fiber* f) { emu_switch(&f->sp, main_sp); }
#endif

extern "C" void emu_fail(const char* format, ...) {
  if (!failed) {
    int n = 0;
    if (current) n = snprintf(emu_error, sizeof emu_error, "block %u thread %u: ", emu.block.x, current->thread.tid.x);
    va_list rest;
    va_start(rest, format);
    vsnprintf(emu_error + n, sizeof emu_error - n, format, rest);
    va_end(rest);
    failed = true;
  }
  if (!current) {
    fprintf(stderr, "emulator: %s\n", emu_error);
    abort();
  }
  Fiber* f = current;
  f->state = DONE;
  for (;;) to_main(f);
}

static void body() {
  kernel(kernel_ctx, kernel_args);
  Fiber* f = current;
  f->state = DONE;
  for (;;) to_main(f);
}

static void start(Fiber* f) {
  f->stack = free_stacks.back();
  free_stacks.pop_back();
  char* top = stacks + (size_t)(f->stack + 1) * STACK;
#ifdef EMU_UCONTEXT
  if (!f->context) f->context = malloc(sizeof(ucontext_t));
  auto* c = (ucontext_t*)f->context;
  getcontext(c);
  c->uc_stack.ss_sp = top - STACK;
  c->uc_stack.ss_size = STACK;
  c->uc_link = nullptr;
  makecontext(c, body, 0);
#else
  void** sp = (void**)((uintptr_t)top & ~15ull) - 2;
  *sp = (void*)body;
  f->sp = sp - 6;
  memset(f->sp, 0, 48);
#endif
  f->state = READY;
}

// ---- barriers and warps ----------------------------------------------------------------------------------------------
static void release_barrier() {
  ++epoch;
  barrier_out[0] = count;
  barrier_out[1] = count == live;
  count = waiting = 0;
  unsigned warps = (threads + 31) / 32, turn[32];
  std::iota(turn, turn + warps, 0u);
  if (order == UNFAIR) std::shuffle(turn, turn + warps, generator);
  for (unsigned i = 0; i < warps; ++i)
    for (unsigned j = turn[i] * 32; j < turn[i] * 32 + 32 && j < (unsigned)threads; ++j)
      if (fibers[j].state == AT_BARRIER) {
        fibers[j].state = READY;
        run_queue.push_back(j);
      }
}

extern "C" void emu_barrier(int line, int predicate, int out[2]) {
  if (!current) emu_fail("line %d: a barrier in a kernel that was taken for one without", line);
  if (waiting && barrier_line != line)
    emu_fail("divergent __syncthreads: line %d while other threads wait at line %d", line, barrier_line);
  barrier_line = current->line = line;
  ++waiting;
  count += predicate;
  current->state = AT_BARRIER;
  if (waiting == live) release_barrier();
  to_main(current);
  if (out) out[0] = barrier_out[0], out[1] = barrier_out[1];
}

static void meet(Fiber* f, Fiber* warp, int width) {
  uint64_t ballot = 0, result[32];
  void* args[32] = {};
  for (int l = 0; l < width; ++l)
    if (f->mask >> l & 1) ballot |= (uint64_t)(warp[l].value & 1) << l, args[l] = warp[l].arg;
  if (f->op == EMU_MMA) {
    if (width != 32) emu_fail("line %d: a tensor-core operation needs a full warp", f->line);
    int level = check_level;
    check_level = 0;
    auto fn = (EmuCollective)(uintptr_t)f->value;
    fn(args, f->mask);
    check_level = level;
  }
  for (int l = 0; l < width; ++l) {
    if (!(f->mask >> l & 1)) continue;
    int s = warp[l].source;
    result[l] = f->op == EMU_SHFL ? (f->mask >> s & 1 ? warp[s].value : 0xdeadbeefdeadbeefull) : ballot;
    if (f->op == EMU_MATCH) {
      result[l] = 0;
      for (int k = 0; k < width; ++k) result[l] |= (uint64_t)((f->mask >> k & 1) && warp[k].value == warp[l].value) << k;
    }
  }
  for (int l = 0; l < width; ++l) {
    if (!(f->mask >> l & 1)) continue;
    warp[l].result = result[l];
    warp[l].state = READY;
    ++warp[l].warp_epoch;
    if (&warp[l] != f) run_queue.push_back(warp[l].thread.flat);
  }
}

extern "C" uint64_t emu_warp(int op, int line, unsigned mask, uint64_t value, int source, EmuCollective fn, void* arg) {
  if (!current) emu_fail("line %d: a warp operation in a kernel that was taken for one without", line);
  Fiber *f = current, *warp = &fibers[f->thread.flat & ~31u];
  int width = std::min(32, threads - (int)(f->thread.flat & ~31u));
  if (width < 32) mask &= (1u << width) - 1;
  if (!(mask >> f->thread.lane & 1)) emu_fail("warp op at line %d: lane %u is not in mask 0x%08x", line, f->thread.lane, mask);
  f->state = AT_WARP;
  f->op = op, f->line = line, f->mask = mask, f->source = source, f->arg = arg;
  f->value = fn ? (uint64_t)(uintptr_t)fn : value;
  for (int l = 0; l < width; ++l) {
    if (!(mask >> l & 1)) continue;
    if (warp[l].state != AT_WARP) {
      if (warp[l].state == DONE) emu_fail("warp op at line %d: lane %d of mask 0x%08x has exited", line, l, mask);
      to_main(f);
      return f->result;
    }
    if (warp[l].mask != mask || warp[l].op != op || warp[l].line != line)
      emu_fail("divergent warp op: line %d mask 0x%08x, but lane %d is at line %d with mask 0x%08x", line, mask, l,
               warp[l].line, warp[l].mask);
  }
  meet(f, warp, width);
  return f->result;
}

// ---- shared memory and asynchronous copies ---------------------------------------------------------------------------
extern "C" void* emu_shared(const void* key, size_t bytes, size_t align) {
  for (auto& s : shared_blocks)
    if (s.key == key) return s.p;
  (void)align;
  char* p = (char*)(((uintptr_t)arena + shared_end + 63) & ~63ull);
  shared_end = p + bytes + 64 - arena;
  shared_total += bytes;
  if (shared_total > SHARED_LIMIT || shared_end > ARENA) emu_fail("%zu bytes of shared memory are over the limit", shared_total);
  memset(p, 0xff, bytes);
  shared_blocks.push_back({key, p});
  if (check_level) emu_register(p, bytes);
  return p;
}

static void end_shared() {
  if (check_level)
    for (auto& s : shared_blocks) emu_unregister(s.p);
  shared_blocks.clear();
  shared_end = shared_total = 0;
}

void check_copy(const AsyncCopy& copy, bool starting, void* pc);

extern "C" void emu_async_copy(void* to, const void* from, size_t bytes, size_t valid) {
  if (!current) emu_fail("an asynchronous copy in a kernel that was taken for one without");
  if ((uintptr_t)to % bytes || (valid && (uintptr_t)from % bytes)) emu_fail("cp.async of %zu bytes from %p to %p is misaligned", bytes, from, to);
  AsyncCopy copy{(char*)to, (const char*)from, bytes, valid, current->committed};
  check_copy(copy, true, __builtin_return_address(0));
  memset(to, 0xff, bytes);
  current->copies.push_back(copy);
}

extern "C" void emu_async_commit() { ++current->committed; }

extern "C" void emu_async_wait(unsigned pending) {
  auto& copies = current->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group + pending < current->committed; ++done) {
    auto& c = copies[done];
    check_copy(c, false, __builtin_return_address(0));
    memset(c.to, 0, c.bytes);
    memcpy(c.to, c.from, c.valid);
  }
  copies.erase(copies.begin(), copies.begin() + done);
}

// ---- launch ----------------------------------------------------------------------------------------------------------
static void deadlock(int done) {
  int barriers = 0, warps = 0, barrier_at = 0, warp_at = 0;
  for (auto& f : fibers) {
    if (f.state == AT_BARRIER) ++barriers, barrier_at = f.line;
    if (f.state == AT_WARP) ++warps, warp_at = f.line;
  }
  current = nullptr;
  snprintf(emu_error, sizeof emu_error, "deadlock in block %u: %d threads at __syncthreads (line %d), %d in warp operations (line %d), %d exited",
           block_number, barriers, barrier_at, warps, warp_at, done);
  failed = true;
}

static long next_unfair() {
  size_t k = (generator() & 15) ? run_queue.size() - 1 : generator() % run_queue.size();
  unsigned id = run_queue[k];
  run_queue.erase(run_queue.begin() + k);
  return id;
}

static void run_block(std::vector<unsigned>& turn) {
  std::vector<unsigned> batch;
  size_t next = 0, at = 0;
  int done = 0;
  run_queue.clear();
  while (done < threads && !failed) {
    unsigned id;
    bool more = next < (size_t)threads;
    if (order == UNFAIR && !run_queue.empty() && (!more || (generator() & 7))) {
      id = next_unfair();
    } else if (at < batch.size()) {
      id = batch[at++];
    } else if (order != UNFAIR && !run_queue.empty() && (order != SHUFFLED || !more || (generator() & 1))) {
      batch.swap(run_queue);
      run_queue.clear();
      at = 0;
      if (order == REVERSE) std::reverse(batch.begin(), batch.end());
      if (order == SHUFFLED) std::shuffle(batch.begin(), batch.end(), generator);
      continue;
    } else if (more) {
      id = turn[next++];
      start(&fibers[id]);
    } else {
      return deadlock(done);
    }
    current = &fibers[id];
    emu.thread = &current->thread;
    to_fiber(current);
    if (current->state == DONE) {
      ++done;
      --live;
      free_stacks.push_back(current->stack);
      if (!failed && !current->copies.empty()) {
        snprintf(emu_error, sizeof emu_error, "block %u thread %u ended with cp.async copies it never waited for", block_number, id);
        failed = true;
      }
      current = nullptr;
      if (waiting && waiting == live) release_barrier();
    }
  }
  current = nullptr;
  if (failed)
    for (auto& f : fibers)
      if (f.state != NEW && f.state != DONE) free_stacks.push_back(f.stack);
}

static void prepare() {
  if (arena) return;
  arena = (char*)mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  stacks = (char*)mmap(nullptr, STACK * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (int i = 1024; i--;) free_stacks.push_back(i);
}

static int refused(const char* what, size_t value) {
  snprintf(emu_error, sizeof emu_error, "invalid launch: %s %zu", what, value);
  return 1;
}

static void launch_plain(unsigned grid) {
  EmuThread t = {};
  emu.thread = &t;
  for (unsigned b = 0; b < grid; ++b) {
    emu.block.x = b;
    for (int i = 0; i < threads; ++i) {
      t.tid.x = t.flat = i;
      t.lane = i & 31;
      t.warp = i >> 5;
      kernel(kernel_ctx, kernel_args);
    }
  }
}

// One launch of `grid` blocks of `block` threads; level 0 plain, 1 bounds, 2 races too. Returns 1 with emu_error set when the kernel failed.
extern "C" int emu_launch(EmuKernel fn, long long* ctx, const long long* args, unsigned grid, int block, size_t dynamic, int cooperative,
                          int level, int order_, unsigned seed) {
  if (block < 1 || block > 1024) return refused("block size", block);
  if (dynamic > SHARED_LIMIT) return refused("dynamic shared bytes", dynamic);
  prepare();
  kernel = fn, kernel_ctx = ctx, kernel_args = args;
  threads = block;
  emu.threads = {(unsigned)block, 1, 1};
  emu.grid = {grid, 1, 1};
  failed = false;
  emu_error[0] = 0;
  current = nullptr;
  check_level = level;
  order = order_;
  ++launch_number;
  generator.seed(seed);
  if (!cooperative && !level) {
    launch_plain(grid);
    return 0;
  }
  fibers.resize(threads);
  std::vector<unsigned> turn(threads);
  std::iota(turn.begin(), turn.end(), 0u);
  if (order == REVERSE) std::reverse(turn.begin(), turn.end());
  for (unsigned b = 0; b < grid && !failed; ++b) {
    block_number = order == REVERSE ? grid - 1 - b : b;
    emu.block = {block_number, 0, 0};
    ++epoch;
    waiting = count = 0;
    live = threads;
    end_shared();
    emu.dynamic = dynamic ? emu_shared(nullptr, dynamic, 16) : nullptr;
    if (order >= SHUFFLED) std::shuffle(turn.begin(), turn.end(), generator);
    for (int i = 0; i < threads; ++i) {
      Fiber& f = fibers[i];
      f.thread = {{(unsigned)i, 0, 0}, (unsigned)i, (unsigned)i & 31, (unsigned)i >> 5};
      f.state = NEW;
      f.stack = -1;
      f.warp_epoch = f.committed = 0;
      f.copies.clear();
    }
    run_block(turn);
  }
  end_shared();
  check_level = 0;
  return failed;
}
