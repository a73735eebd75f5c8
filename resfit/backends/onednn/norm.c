// Batch normalization in training, with the addition of a shortcut and ReLU after it, in two passes over memory forward
// and two backward. XLA's own code takes up to three times as long, most of all in bfloat16.
//
// It is compiled once on the user's machine, see norm_library.py, by GCC or Clang for the machine's own processor. It
// runs on XLA's threads and keeps nothing between two calls. The split of the sums does not depend on the number of
// threads, so neither do the results.

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

enum { LANES = 16, BLOCK = 4 * LANES, CHUNK = 65536 };  // channels in a vector and in a block; elements of a task

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef float LooseFloats __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const void* array, int64_t at, int half) {
  if (!half) return *(const LooseFloats*)((const float*)array + at);
  Words words = __builtin_convertvector((Halves)*(const LooseHalves*)((const uint16_t*)array + at), Words);
  return (Floats)(words << 16);
}

INLINE void store(void* array, int64_t at, Floats values, int half) {
  if (!half) {
    *(LooseFloats*)((float*)array + at) = values;
    return;
  }
  Words words = (Words)values;
  Words rounded = (words + 0x7fff + (words >> 16 & 1)) >> 16;  // to the nearest, ties to even
  Words is_nan = (Words)(values != values);
  rounded = (is_nan & 0x7fc0) | (~is_nan & rounded);
  *(LooseHalves*)((uint16_t*)array + at) = __builtin_convertvector(rounded, Halves);
}

// --- work on XLA's threads --------------------------------------------------------------------------------------------

// Tasks of one loop. Threads take the next one until none is left, so a thread that comes late or not at all costs
// nothing. The last thread that holds the loop frees it: a helper can start after the loop has ended.
typedef struct {
  void (*task)(const void* data, int64_t i);
  const void* data;
  int64_t tasks;
  int64_t next, done, holders;
  pthread_mutex_t lock;
  pthread_cond_t finished;
} Loop;

static void release(Loop* loop) {
  if (__atomic_sub_fetch(&loop->holders, 1, __ATOMIC_ACQ_REL)) return;
  pthread_cond_destroy(&loop->finished);
  pthread_mutex_destroy(&loop->lock);
  free(loop);
}

static void take_tasks(Loop* loop) {
  for (;;) {
    int64_t i = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED);
    if (i >= loop->tasks) return;
    loop->task(loop->data, i);
    if (__atomic_add_fetch(&loop->done, 1, __ATOMIC_ACQ_REL) < loop->tasks) continue;
    pthread_mutex_lock(&loop->lock);
    pthread_cond_signal(&loop->finished);
    pthread_mutex_unlock(&loop->lock);
  }
}

static void help(void* data) {
  take_tasks(data);
  release(data);
}

// Run all tasks, with the help of XLA's other threads. Return 0 if there is no memory.
static int run(const XLA_FFI_CallFrame* frame, void (*task)(const void*, int64_t), const void* data, int64_t tasks) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args count = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  XLA_FFI_Error* failed = frame->api->XLA_FFI_ThreadPool_NumThreads(&count);
  if (failed || tasks < 2 || threads < 2) {  // without a pool, this thread does everything
    if (failed) {
      XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, failed};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
    }
    for (int64_t i = 0; i < tasks; i++) task(data, i);
    return 1;
  }
  Loop* loop = malloc(sizeof *loop);
  if (!loop) return 0;
  *loop = (Loop){.task = task, .data = data, .tasks = tasks, .holders = 1};
  pthread_mutex_init(&loop->lock, NULL);
  pthread_cond_init(&loop->finished, NULL);
  int64_t helpers = (threads < tasks ? threads : tasks) - 1;
  for (int64_t i = 0; i < helpers; i++) {
    __atomic_add_fetch(&loop->holders, 1, __ATOMIC_RELAXED);
    XLA_FFI_ThreadPool_Schedule_Args schedule = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, loop};
    failed = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
    if (failed) {
      XLA_FFI_Error_Destroy_Args destroy = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, failed};
      frame->api->XLA_FFI_Error_Destroy(&destroy);
      __atomic_sub_fetch(&loop->holders, 1, __ATOMIC_RELAXED);
    }
  }
  take_tasks(loop);
  pthread_mutex_lock(&loop->lock);
  while (__atomic_load_n(&loop->done, __ATOMIC_ACQUIRE) < tasks) pthread_cond_wait(&loop->finished, &loop->lock);
  pthread_mutex_unlock(&loop->lock);
  release(loop);
  return 1;
}

// --- the arithmetic ---------------------------------------------------------------------------------------------------

// A call. Arrays are (rows, width) in memory. Where few channels do not fill a block, a row holds several pixels, and
// `width` is a multiple of `channels`.
typedef struct {
  int64_t rows, width, channels, pixels, rows_of_task, tasks;
  int half;
  int reversed;       // 1: begin with the rows that were read last and are still in the cache
  const void *x, *added, *y, *g;      // y: where ReLU's mask cannot be computed from x alone; g: the cotangent of y
  void *out, *out_added;              // y, or the cotangents of x and of what was added
  float *gain, *shift, *factor, *offset;  // (width,): y = x * gain + shift; dx = g * gain + x * factor + offset
  float* sums;                        // (tasks, 2, width)
} Norm;

// Some rows and channels of a task, and the sums of the task.
typedef struct {
  int64_t begin, end, channel;
  float* sums;
} Block;

// The cotangent after ReLU's mask. The mask is that of the forward pass: the same arithmetic on the same numbers.
INLINE Floats masked(const Norm* n, int64_t at, Floats x, Floats gain, Floats shift, int half, int relu, int has_y) {
  Floats g = load(n->g, at, half);
  if (!relu) return g;
  Floats y = has_y ? load(n->y, at, half) : x * gain + shift;
  return (Floats)((Words)g & (Words)(y > 0));
}

INLINE void sum_block(const Norm* n, Block b, int vectors, int half, int relu, int has_y, int backward) {
  Floats first[4] = {{0}}, second[4] = {{0}}, gain[4] = {{0}}, shift[4] = {{0}};
  for (int v = 0; v < vectors && backward && relu && !has_y; v++) {
    gain[v] = load(n->gain, b.channel + v * LANES, 0);
    shift[v] = load(n->shift, b.channel + v * LANES, 0);
  }
  for (int64_t row = b.begin; row < b.end; row++)
    for (int v = 0; v < vectors; v++) {
      int64_t at = row * n->width + b.channel + v * LANES;
      Floats x = load(n->x, at, half);
      Floats g = backward ? masked(n, at, x, gain[v], shift[v], half, relu, has_y) : x;
      first[v] += g;
      second[v] += g * x;
    }
  for (int v = 0; v < vectors; v++) {
    int64_t at = b.channel + v * LANES;
    store(b.sums, at, load(b.sums, at, 0) + first[v], 0);
    store(b.sums, n->width + at, load(b.sums, n->width + at, 0) + second[v], 0);
  }
}

INLINE void forward_block(const Norm* n, Block b, int vectors, int half, int relu, int added) {
  Floats gain[4], shift[4];
  for (int v = 0; v < vectors; v++) {
    gain[v] = load(n->gain, b.channel + v * LANES, 0);
    shift[v] = load(n->shift, b.channel + v * LANES, 0);
  }
  for (int64_t row = b.begin; row < b.end; row++)
    for (int v = 0; v < vectors; v++) {
      int64_t at = row * n->width + b.channel + v * LANES;
      Floats y = load(n->x, at, half) * gain[v] + shift[v];
      if (added) y += load(n->added, at, half);
      if (relu) y = (Floats)((Words)y & ~(Words)(y < 0));  // keeps NaN, as XLA does
      store(n->out, at, y, half);
    }
}

INLINE void backward_block(const Norm* n, Block b, int vectors, int half, int relu, int added) {
  Floats gain[4], shift[4], factor[4], offset[4];
  for (int v = 0; v < vectors; v++) {
    gain[v] = load(n->gain, b.channel + v * LANES, 0);
    shift[v] = load(n->shift, b.channel + v * LANES, 0);
    factor[v] = load(n->factor, b.channel + v * LANES, 0);
    offset[v] = load(n->offset, b.channel + v * LANES, 0);
  }
  for (int64_t row = b.begin; row < b.end; row++)
    for (int v = 0; v < vectors; v++) {
      int64_t at = row * n->width + b.channel + v * LANES;
      Floats x = load(n->x, at, half);
      Floats g = masked(n, at, x, gain[v], shift[v], half, relu, added);
      store(n->out, at, g * gain[v] + (x * factor[v] + offset[v]), half);
      if (added) store(n->out_added, at, g, half);
    }
}

// The functions above, compiled once for each dtype and each set of operations. Rows of up to one block are read one
// after the other, longer ones four at a time, so that memory is read in order. A sum is in registers for a few rows
// only: one float32 sum over all rows of a task would be several times less exact than XLA's.
enum { SUMMED = 32 };
#define BLOCKS(name, call)                                                                \
  static void name(const void* data, int64_t i) {                                         \
    const Norm* n = data;                                                                 \
    if (n->reversed) i = n->tasks - 1 - i;                                                \
    int64_t end = (i + 1) * n->rows_of_task < n->rows ? (i + 1) * n->rows_of_task : n->rows; \
    int64_t rows = n->width <= BLOCK ? SUMMED : 4;                                        \
    Block b = {.sums = n->sums + i * 2 * n->width};                                       \
    for (b.begin = i * n->rows_of_task; b.begin < end; b.begin = b.end) {                 \
      b.end = b.begin + rows < end ? b.begin + rows : end;                                \
      for (b.channel = 0; b.channel < n->width;) {                                        \
        if (n->width - b.channel >= BLOCK) {                                              \
          enum { vectors = BLOCK / LANES };                                               \
          call;                                                                           \
          b.channel += BLOCK;                                                             \
        } else {                                                                          \
          enum { vectors = 1 };                                                           \
          call;                                                                           \
          b.channel += LANES;                                                             \
        }                                                                                 \
      }                                                                                   \
    }                                                                                     \
  }
#define VARIANTS(suffix, half)                                                            \
  BLOCKS(moments_##suffix, sum_block(n, b, vectors, half, 0, 0, 0))                    \
  BLOCKS(forward_##suffix, forward_block(n, b, vectors, half, 0, 0))                   \
  BLOCKS(forward_relu_##suffix, forward_block(n, b, vectors, half, 1, 0))              \
  BLOCKS(forward_add_relu_##suffix, forward_block(n, b, vectors, half, 1, 1))          \
  BLOCKS(sums_##suffix, sum_block(n, b, vectors, half, 0, 0, 1))                       \
  BLOCKS(sums_relu_##suffix, sum_block(n, b, vectors, half, 1, 0, 1))                  \
  BLOCKS(sums_add_relu_##suffix, sum_block(n, b, vectors, half, 1, 1, 1))              \
  BLOCKS(backward_##suffix, backward_block(n, b, vectors, half, 0, 0))                 \
  BLOCKS(backward_relu_##suffix, backward_block(n, b, vectors, half, 1, 0))            \
  BLOCKS(backward_add_relu_##suffix, backward_block(n, b, vectors, half, 1, 1))
VARIANTS(float, 0)
VARIANTS(half, 1)

typedef void Task(const void* data, int64_t i);
enum { PLAIN, RELU, ADD_RELU };
static Task* const MOMENTS[2] = {moments_float, moments_half};
static Task* const FORWARD[2][3] = {{forward_float, forward_relu_float, forward_add_relu_float},
                                    {forward_half, forward_relu_half, forward_add_relu_half}};
static Task* const SUMS[2][3] = {{sums_float, sums_relu_float, sums_add_relu_float},
                                 {sums_half, sums_relu_half, sums_add_relu_half}};
static Task* const BACKWARD[2][3] = {{backward_float, backward_relu_float, backward_add_relu_float},
                                     {backward_half, backward_relu_half, backward_add_relu_half}};

// Add up both sums of a channel over all tasks and over the pixels in a row.
static void totals(const Norm* n, int64_t channel, double* first, double* second) {
  *first = *second = 0;
  for (int64_t i = 0; i < n->tasks; i++)
    for (int64_t c = channel; c < n->width; c += n->channels) {
      *first += n->sums[i * 2 * n->width + c];
      *second += n->sums[(i * 2 + 1) * n->width + c];
    }
}

static float inverse_root(float value) {
  float root = __builtin_sqrtf(value);
  return 1 / root;
}

static void set_gain(const Norm* n, int64_t channel, float gain, float shift) {
  for (int64_t c = channel; c < n->width; c += n->channels) {
    n->gain[c] = gain;
    n->shift[c] = shift;
  }
}

// --- the targets of XLA's calls ---------------------------------------------------------------------------------------

static XLA_FFI_Error* error(const XLA_FFI_CallFrame* frame, XLA_FFI_Error_Code code, const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

// Return 1 for a call that only asks for the version of the interface, or precedes the execution.
static int is_no_execution(const XLA_FFI_CallFrame* frame) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)(void*)frame->extension_start)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    metadata->traits = 0;
    return 1;
  }
  return frame->stage != XLA_FFI_ExecutionStage_EXECUTE;
}

static int64_t elements(const XLA_FFI_Buffer* buffer) {
  int64_t product = 1;
  for (int64_t i = 0; i < buffer->rank; i++) product *= buffer->dims[i];
  return product;
}

INLINE void* argument(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->args.args[i])->data; }
INLINE void* result(const XLA_FFI_CallFrame* frame, int64_t i) { return ((XLA_FFI_Buffer*)frame->rets.rets[i])->data; }

// The attributes, in alphabetical order, and whether all arrays have the dtypes and sizes that the code reads.
typedef struct {
  float epsilon;
  int32_t operations;  // PLAIN, RELU or ADD_RELU
} Attributes;

static const char* check(const XLA_FFI_CallFrame* frame, int backward, Attributes* attributes, Norm* n) {
  const XLA_FFI_Attrs* given = &frame->attrs;
  if (given->size != 2 || given->types[0] != XLA_FFI_AttrType_SCALAR || given->types[1] != XLA_FFI_AttrType_SCALAR)
    return "resfit: a batch normalization was called with other attributes";
  const XLA_FFI_Scalar *epsilon = given->attrs[0], *operations = given->attrs[1];
  if (epsilon->dtype != XLA_FFI_DataType_F32 || operations->dtype != XLA_FFI_DataType_S32)
    return "resfit: a batch normalization was called with attributes of another dtype";
  memcpy(&attributes->epsilon, epsilon->value, sizeof(float));
  memcpy(&attributes->operations, operations->value, sizeof(int32_t));
  if (attributes->operations < PLAIN || attributes->operations > ADD_RELU)
    return "resfit: a batch normalization was called with unknown operations";
  int added = attributes->operations == ADD_RELU;
  // Arguments: whole arrays, then rows with a value for each channel. Results: such arrays and rows, scratch memory.
  int64_t wholes = 1 + backward + added, whole_results = 1 + (backward && added);
  if (frame->args.size != wholes + (backward ? 6 : 2) || frame->rets.size != whole_results + 3)
    return "resfit: a batch normalization has another number of arrays";
  const XLA_FFI_Buffer* x = frame->args.args[0];
  if (x->rank < 1 || (x->dtype != XLA_FFI_DataType_F32 && x->dtype != XLA_FFI_DataType_BF16))
    return "resfit: a batch normalization has another dtype";
  n->half = x->dtype == XLA_FFI_DataType_BF16;
  n->channels = x->dims[x->rank - 1];
  int64_t size = elements(x);
  if (n->channels < LANES || n->channels % LANES) return "resfit: a batch normalization has another number of channels";
  n->pixels = size / n->channels;
  int64_t out = frame->rets.size - 1;
  for (int64_t i = 0; i < frame->args.size + out; i++) {
    int is_argument = i < frame->args.size;
    const XLA_FFI_Buffer* buffer = is_argument ? frame->args.args[i] : frame->rets.rets[i - frame->args.size];
    int whole = is_argument ? i < wholes : i - frame->args.size < whole_results;
    if (!buffer->data || elements(buffer) != (whole ? size : n->channels) ||
        buffer->dtype != (whole ? x->dtype : XLA_FFI_DataType_F32))
      return "resfit: an array of a batch normalization has another dtype or size";
  }
  int64_t pixels_of_row = BLOCK / n->channels;
  if (BLOCK % n->channels || n->pixels % pixels_of_row) pixels_of_row = 1;
  n->width = n->channels * pixels_of_row;
  n->rows = n->pixels / pixels_of_row;
  n->rows_of_task = CHUNK / n->width ? CHUNK / n->width : 1;
  n->tasks = (n->rows + n->rows_of_task - 1) / n->rows_of_task;
  const XLA_FFI_Buffer* scratch = frame->rets.rets[out];
  if (scratch->dtype != XLA_FFI_DataType_F32 || elements(scratch) < (n->tasks * 2 + 4) * n->width)
    return "resfit: a batch normalization has too little scratch memory";
  n->gain = scratch->data;
  n->shift = n->gain + n->width;
  n->factor = n->shift + n->width;
  n->offset = n->factor + n->width;
  n->sums = n->offset + n->width;
  memset(n->sums, 0, n->tasks * 2 * n->width * sizeof(float));
  return NULL;
}

static XLA_FFI_Error* no_memory(const XLA_FFI_CallFrame* frame) {
  return error(frame, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "resfit: no memory for a batch normalization");
}

// (x, [added], scale, bias) -> (y, mean, var, scratch)
XLA_FFI_Error* resfit_norm_forward(XLA_FFI_CallFrame* frame) {
  if (is_no_execution(frame)) return NULL;
  Norm n = {0};
  Attributes attributes;
  const char* message = check(frame, 0, &attributes, &n);
  if (message) return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
  int added = attributes.operations == ADD_RELU;
  n.x = argument(frame, 0);
  n.added = added ? argument(frame, 1) : NULL;
  const float *scale = argument(frame, 1 + added), *bias = argument(frame, 2 + added);
  n.out = result(frame, 0);
  float *means = result(frame, 1), *vars = result(frame, 2);
  if (!run(frame, MOMENTS[n.half], &n, n.tasks)) return no_memory(frame);
  for (int64_t c = 0; c < n.channels; c++) {
    double sum, squares;
    totals(&n, c, &sum, &squares);
    double mean = sum / n.pixels, var = squares / n.pixels - mean * mean;
    means[c] = mean;
    // NaN where the squares are too large for float32, as with XLA: a diverging run must not look finite.
    vars[c] = __builtin_isinf(means[c] * means[c]) ? __builtin_nanf("") : var < 0 ? 0 : var;
    float gain = inverse_root(vars[c] + attributes.epsilon) * scale[c];
    set_gain(&n, c, gain, bias[c] - means[c] * gain);
  }
  n.reversed = 1;
  return run(frame, FORWARD[n.half][attributes.operations], &n, n.tasks) ? NULL : no_memory(frame);
}

// (x, g, [y], scale, bias, mean, var, g of mean, g of var) -> (g of x, [g of added], g of scale, g of bias, scratch)
XLA_FFI_Error* resfit_norm_backward(XLA_FFI_CallFrame* frame) {
  if (is_no_execution(frame)) return NULL;
  Norm n = {0};
  Attributes attributes;
  const char* message = check(frame, 1, &attributes, &n);
  if (message) return error(frame, XLA_FFI_Error_Code_INVALID_ARGUMENT, message);
  int added = attributes.operations == ADD_RELU;
  n.x = argument(frame, 0);
  n.g = argument(frame, 1);
  n.y = added ? argument(frame, 2) : NULL;
  const float* rows[6];  // scale, bias, mean, var, g of mean, g of var
  for (int i = 0; i < 6; i++) rows[i] = argument(frame, 2 + added + i);
  n.out = result(frame, 0);
  n.out_added = added ? result(frame, 1) : NULL;
  float *of_scale = result(frame, 1 + added), *of_bias = result(frame, 2 + added);
  for (int64_t c = 0; c < n.channels; c++) {
    float gain = inverse_root(rows[3][c] + attributes.epsilon) * rows[0][c];
    set_gain(&n, c, gain, rows[1][c] - rows[2][c] * gain);
  }
  if (!run(frame, SUMS[n.half][attributes.operations], &n, n.tasks)) return no_memory(frame);
  for (int64_t channel = 0; channel < n.channels; channel++) {
    double of_shift, of_gain;
    totals(&n, channel, &of_shift, &of_gain);
    double mean = rows[2][channel], root = inverse_root(rows[3][channel] + attributes.epsilon);
    of_gain -= mean * of_shift;  // shift = bias - mean * gain
    of_scale[channel] = of_gain * root;
    of_bias[channel] = of_shift;
    double of_var = rows[5][channel] - of_gain * rows[0][channel] * root * root * root / 2;
    double of_mean = rows[4][channel] - n.gain[channel] * of_shift;
    // var = mean of squares - mean^2
    for (int64_t c = channel; c < n.width; c += n.channels) {
      n.factor[c] = 2 * of_var / n.pixels;
      n.offset[c] = (of_mean - 2 * of_var * mean) / n.pixels;
    }
  }
  n.reversed = 1;
  return run(frame, BACKWARD[n.half][attributes.operations], &n, n.tasks) ? NULL : no_memory(frame);
}
