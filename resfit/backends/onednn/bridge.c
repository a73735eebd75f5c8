// What XLA calls for a convolution: finds its plan by name, checks the buffers, and lets oneDNN execute it.
//
// Compiled once on the user's machine, see bridge.py; it needs the header that jaxlib ships and nothing of oneDNN's,
// whose functions are handed over as pointers. No Python runs in here, so that no step waits for the interpreter's lock.
//
// One thread executes everything, one operation after another: each uses all processors, concurrent executions of the
// library have been seen to hang, and OpenMP keeps a team of threads for every thread that it is called from.

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
  int32_t buffer;     // which buffer it lies in: arguments first, then results; -1: in none, and it has data
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
  int32_t aliased;    // which input lies where the first output goes; 0: none
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
  int (*plan_again)(const char* name, int64_t length);  // in Python: makes a plan that was released; 0: there is none
  void* stream;
  int32_t threads;
  int32_t bind;       // whether each thread is bound to a processor of its own
} Library;

static Library library;
static Plan* plans;
static pthread_mutex_t plans_lock = PTHREAD_MUTEX_INITIALIZER;

// Whose turn it is: held by the caller from finding its plan until the work is done. No plan is released meanwhile.
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

// Of glibc. The C library's own header may not be there; a set of 1,024 processors is what its type holds, too.
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
    sched_setaffinity(0, sizeof own, own);  // if it fails, they stay where the system puts them
    return;
  }
}

static void* serve(void* unused) {
  (void)unused;
  library.set_threads(library.threads);
  library.set_dynamic(0);  // a smaller team than an operation was cut for would wait for ever
  // Threads that sleep between operations are woken on the processor of who wakes them, and two on one take twice as
  // long: they are bound. These threads do nothing but this, so that nobody else's are.
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

// Finds a plan, also one that was released. The caller has the turn, and gives it up while Python makes the plan again.
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

// Why a buffer is not what the plan was made for; NULL if it is.
static const char* mismatch(const Buffer* expected, const XLA_FFI_Buffer* buffer) {
  if (!buffer || !buffer->data) return "resfit: a buffer of a convolution has no memory";
  if ((int32_t)buffer->dtype != expected->dtype) return "resfit: a buffer of a convolution has another dtype";
  int64_t elements = 1;
  for (int64_t i = 0; i < buffer->rank; i++) elements *= buffer->dims[i];
  return elements == expected->elements ? NULL : "resfit: a buffer of a convolution has another size";
}

// Executes a call. The caller has the turn.
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

// Takes over oneDNN's functions and starts the thread. Returns 0, or the number of an error.
int resfit_open(const Library* given_library) {
  library = *given_library;
  pthread_t thread;
  int failed = pthread_create(&thread, NULL, serve, NULL);
  if (failed) return failed;
  pthread_detach(thread);
  closed = 0;
  return 0;
}

// Waits for what runs; what comes later is an error. For the end of the process, when libraries are taken down.
void resfit_close(void) {
  pthread_mutex_lock(&turn);
  closed = 1;
  while (asking) pthread_cond_wait(&answered, &turn);  // the interpreter must still be there to answer
  pthread_mutex_unlock(&turn);
}

// The plan stays the caller's, who must keep it until it is removed.
void resfit_add(Plan* plan) {
  pthread_mutex_lock(&plans_lock);
  plan->next = plans;
  plans = plan;
  pthread_mutex_unlock(&plans_lock);
}

// Waits for what runs; afterwards the plan may be freed.
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
