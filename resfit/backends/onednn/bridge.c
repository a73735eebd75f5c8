// The target of XLA's calls for convolutions: find the plan by name, check the buffers, make oneDNN execute it.
//
// It is compiled once on the user's machine, see bridge.py. It needs a header of jaxlib and none of oneDNN, whose
// functions arrive as pointers. No Python runs here, so that no step waits for the interpreter's lock.
//
// One thread executes everything, one operation after another: each operation uses all processors, concurrent
// executions of the library have been seen to hang, and OpenMP keeps a team of threads for every thread that calls it.

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

enum { BUFFERS = 9, MEMORIES = 12, CALLS = 3, ARGUMENTS = 10, ALIGNMENT = 64 };

typedef struct {
  int32_t dtype;      // XLA_FFI_DataType
  int64_t elements;
} Buffer;

typedef struct {
  void* memory;       // dnnl_memory_t, whose data is set before each execution
  int32_t buffer;     // its buffer: arguments first, then results; -1: none, it has its own data
  int64_t offset;     // in bytes, from the buffer's first aligned address
} Memory;

typedef struct {      // dnnl_exec_arg_t
  int32_t role;
  void* memory;
} Argument;

typedef struct {
  const void* primitive;
  int32_t count;
  Argument arguments[ARGUMENTS];
} Call;

typedef struct Plan {
  const char* name;
  int64_t length;
  int32_t inputs, outputs;
  int32_t aliased;    // the input in the memory of the first output; 0: none
  int32_t memory_count, call_count;
  Buffer buffers[BUFFERS];
  Memory memories[MEMORIES];
  Call calls[CALLS];
  struct Plan* next;
} Plan;

typedef struct {
  int (*execute)(const void* primitive, void* stream, int count, const Argument* arguments);
  int (*set_data)(void* memory, void* data);
  int (*wait)(void* stream);
  void (*set_threads)(int count);
  void (*set_dynamic)(int on);
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_number)(void);
  int (*plan_again)(const char* name, int64_t length);  // in Python: builds a plan again; 0: unknown name
  void* stream;
  int32_t threads;
  int32_t bind;       // 1 to bind each thread to a processor of its own
} Library;

static Library library;
static Plan* plans;
static pthread_mutex_t plans_lock = PTHREAD_MUTEX_INITIALIZER;

// Held by a caller from the search for its plan to the end of the work. No plan is released meanwhile.
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;
static int asking;    // callers that wait for Python
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t given = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static const Plan* work;
static void* data[BUFFERS];
static int status, done, closed = 1;

static int execute(const Plan* plan) {
  for (int i = 0; i < plan->memory_count; i++) {
    const Memory* memory = &plan->memories[i];
    if (memory->buffer < 0) continue;
    uintptr_t address = (uintptr_t)data[memory->buffer];
    if (memory->offset >= 0) address = (address + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + (uintptr_t)memory->offset;
    int failed = library.set_data(memory->memory, (void*)address);
    if (failed) return failed;
  }
  for (int i = 0; i < plan->call_count; i++) {
    const Call* call = &plan->calls[i];
    int failed = library.execute(call->primitive, library.stream, call->count, call->arguments);
    if (failed) return failed;
  }
  return library.wait(library.stream);
}

// Of glibc, whose header may be missing. Its own type also holds 1,024 processors.
enum { PROCESSORS = 1024, WORD = 8 * sizeof(unsigned long) };
typedef unsigned long Processors[PROCESSORS / WORD];
extern int sched_getaffinity(int thread, size_t size, void* processors);
extern int sched_setaffinity(int thread, size_t size, const void* processors);
static Processors allowed;

static void bind(void* unused) {
  (void)unused;
  int left = library.thread_number();
  for (size_t i = 0; i < PROCESSORS; i++) {
    if (!(allowed[i / WORD] >> i % WORD & 1) || left--) continue;
    Processors own;
    memset(own, 0, sizeof own);
    own[i / WORD] = 1ul << i % WORD;
    sched_setaffinity(0, sizeof own, own);  // if it fails, the system chooses the processor
    return;
  }
}

// Let this thread and those that it starts take numbers below 1e-38 for zero, as XLA's threads do.
static void flush_denormals(void) {
  unsigned int control;
  __asm__ volatile("stmxcsr %0" : "=m"(control));
  control |= 0x8040;  // of results, FTZ, and of operands, DAZ
  __asm__ volatile("ldmxcsr %0" : : "m"(control));
}

static void* serve(void* unused) {
  (void)unused;
  flush_denormals();
  library.set_threads(library.threads);
  library.set_dynamic(0);  // a team smaller than the one an operation was split for would wait forever
  // Sleeping threads wake up on the processor of the thread that wakes them, and two on one processor take twice as
  // long. So they are bound. They execute nothing else, so no other work is bound with them.
  if (library.bind && !sched_getaffinity(0, sizeof allowed, allowed))
    library.parallel(bind, NULL, (unsigned)library.threads, 0);
  pthread_mutex_lock(&lock);
  for (;;) {
    while (!work) pthread_cond_wait(&given, &lock);
    status = execute(work);
    work = NULL;
    done = 1;
    pthread_cond_signal(&finished);
  }
  return NULL;
}

static XLA_FFI_Error* error(const XLA_FFI_CallFrame* frame, XLA_FFI_Error_Code code, const char* message) {
  XLA_FFI_Error_Create_Args args;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  args.message = message;
  args.errc = code;
  return frame->api->XLA_FFI_Error_Create(&args);
}

static const Plan* find(const char* name, size_t length) {
  pthread_mutex_lock(&plans_lock);
  const Plan* plan = plans;
  while (plan && !((size_t)plan->length == length && !memcmp(plan->name, name, length))) plan = plan->next;
  pthread_mutex_unlock(&plans_lock);
  return plan;
}

// Find a plan, also a released one. The caller holds `turn`, and releases it while Python builds the plan again.
static const Plan* found(const char* name, size_t length) {
  const Plan* plan;
  int known = 1;
  while (!(plan = find(name, length)) && known && !closed) {
    asking++;
    pthread_mutex_unlock(&turn);
    known = library.plan_again(name, (int64_t)length);
    pthread_mutex_lock(&turn);
    asking--;
    pthread_cond_signal(&answered);
  }
  return plan;
}

// Return what differs between a buffer and the one of the plan, or NULL.
static const char* mismatch(const Buffer* expected, const XLA_FFI_Buffer* buffer) {
  if (!buffer || !buffer->data) return "resfit: a buffer of a convolution has no memory";
  if ((int32_t)buffer->dtype != expected->dtype) return "resfit: a buffer of a convolution has another dtype";
  int64_t elements = 1;
  for (int64_t i = 0; i < buffer->rank; i++) elements *= buffer->dims[i];
  return elements == expected->elements ? NULL : "resfit: a buffer of a convolution has another size";
}

// Execute a call. The caller holds `turn`.
static XLA_FFI_Error* executed(XLA_FFI_CallFrame* frame, const XLA_FFI_ByteSpan* name) {
  const Plan* plan = found(name->ptr, name->len);
  if (closed) return error(frame, XLA_FFI_Error_Code_CANCELLED, "resfit: the process is ending");
  if (!plan)
    return error(frame, XLA_FFI_Error_Code_NOT_FOUND,
                 "resfit: this program holds a convolution that was not planned in this process");
  if (frame->args.size != plan->inputs || frame->rets.size != plan->outputs)
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "resfit: a convolution has another number of buffers");
  void* pointers[BUFFERS] = {0};
  for (int i = 0; i < plan->inputs + plan->outputs; i++) {
    const XLA_FFI_Buffer* buffer = i < plan->inputs ? frame->args.args[i] : frame->rets.rets[i - plan->inputs];
    const char* message = mismatch(&plan->buffers[i], buffer);
    if (message) return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
    pointers[i] = buffer->data;
  }
  if (plan->aliased && pointers[plan->aliased] != pointers[plan->inputs])
    return error(frame, XLA_FFI_Error_Code_INTERNAL, "resfit: what is added to a convolution is not where it should be");

  pthread_mutex_lock(&lock);
  memcpy(data, pointers, sizeof data);
  done = 0;
  work = plan;
  pthread_cond_signal(&given);
  while (!done) pthread_cond_wait(&finished, &lock);
  int failed = status;
  pthread_mutex_unlock(&lock);
  if (!failed) return NULL;
  return error(frame, failed == 1 ? XLA_FFI_Error_Code_RESOURCE_EXHAUSTED : XLA_FFI_Error_Code_INTERNAL,
               failed == 1 ? "resfit: oneDNN had no memory for a convolution"
                           : "resfit: oneDNN could not execute a convolution; compile(cpu_kernels='xla') does not use it");
}

XLA_FFI_Error* resfit_convolution(XLA_FFI_CallFrame* frame) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)(void*)frame->extension_start)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    metadata->traits = 0;
    return NULL;
  }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return NULL;
  if (frame->attrs.size != 1 || frame->attrs.types[0] != XLA_FFI_AttrType_STRING)
    return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, "resfit: a convolution was called without its name");
  pthread_mutex_lock(&turn);
  XLA_FFI_Error* failed = executed(frame, frame->attrs.attrs[0]);
  pthread_mutex_unlock(&turn);
  return failed;
}

// Take over oneDNN's functions and start the thread. Return 0, or the number of an error.
int resfit_open(const Library* given_library) {
  library = *given_library;
  pthread_t thread;
  int failed = pthread_create(&thread, NULL, serve, NULL);
  if (failed) return failed;
  pthread_detach(thread);
  closed = 0;
  return 0;
}

// Wait for the running call; later calls fail. Called at the end of the process, which unloads the libraries.
void resfit_close(void) {
  pthread_mutex_lock(&turn);
  closed = 1;
  while (asking) pthread_cond_wait(&answered, &turn);  // the interpreter must still be there to answer
  pthread_mutex_unlock(&turn);
}

// The caller keeps the plan alive until it is removed.
void resfit_add(Plan* plan) {
  pthread_mutex_lock(&plans_lock);
  plan->next = plans;
  plans = plan;
  pthread_mutex_unlock(&plans_lock);
}

// Wait for the running call. Afterwards the caller can free the plan.
void resfit_remove(Plan* plan) {
  pthread_mutex_lock(&turn);
  pthread_mutex_lock(&plans_lock);
  Plan** link = &plans;
  while (*link && *link != plan) link = &(*link)->next;
  if (*link) *link = plan->next;
  pthread_mutex_unlock(&plans_lock);
  pthread_mutex_unlock(&turn);
}

int64_t resfit_plan_size(void) { return (int64_t)sizeof(Plan); }
