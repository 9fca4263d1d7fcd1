// A double of libcuda for the tests: records calls, fails where told to, and hands launches to a callback. See fake_cuda.py.
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS, INVALID_VALUE, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       TOO_LARGE = 720, NOT_SUPPORTED = 801, TIMEOUT = 909 };

// ---- what the tests read and set

typedef struct {
  const char* function;
  char text[64];  // the kernel's name, or how the image begins; empty where there is neither
  int count;
  int64_t arguments[8];
} Call;

typedef int (*OnLaunch)(const char* name, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared, void* stream,
                        void** parameters, int cooperative);

static Call* calls;
static int64_t call_count, call_room;
static const char* failing[64];
static int fail_code[64], fail_after[64], failing_count;
static OnLaunch on_launch;
static atomic_int closed, waiting;  // launches wait while the gate is closed

static struct {
  const char* name;
  int value, initial;
} settings[] = {{"devices", 2, 2},        {"device", 0, 0},      {"context", 1, 1}, {"multiprocessors", 4, 4},
                {"max_shared", 232448, 232448}, {"cooperative", 1, 1}, {"programs", 2, 2}};
enum { DEVICES, DEVICE, CONTEXT, MULTIPROCESSORS, MAX_SHARED, COOPERATIVE, PROGRAMS, SETTINGS };
#define SETTING(which) settings[which].value

int64_t fake_call_count(void) { return call_count; }
const Call* fake_calls(void) { return calls; }
void fake_on_launch(OnLaunch f) { on_launch = f; }
void fake_gate(int is_closed) { closed = is_closed; }
int fake_waiting(void) { return waiting; }

int fake_set(const char* name, int value) {
  for (int i = 0; i < SETTINGS; i++)
    if (!strcmp(settings[i].name, name)) return settings[i].value = value, 1;
  return 0;
}

void fake_fail(const char* function, int code, int after) {
  failing[failing_count] = strdup(function);
  fail_code[failing_count] = code;
  fail_after[failing_count++] = after;
}

// Handles that were given out stay valid, as a module does that nobody unloads.
void fake_reset(void) {
  call_count = 0;
  while (failing_count) free((char*)failing[--failing_count]);
  for (int i = 0; i < SETTINGS; i++) settings[i].value = settings[i].initial;
  on_launch = NULL;
  closed = waiting = 0;
}

// ---- the driver

typedef struct {
  char kind;  // 'c', 'm' or 'f'
  int device, max_shared;
  char name[64];
} Handle;
static Handle contexts[8];
static int initialized, capture_mode;

static Handle* handle(char kind, int device, const char* name) {
  Handle* h = calloc(1, sizeof *h);
  h->kind = kind;
  h->device = device;
  h->max_shared = 48 * 1024;
  snprintf(h->name, sizeof h->name, "%s", name);
  return h;
}

static int is(const void* h, char kind) { return h && ((const Handle*)h)->kind == kind; }
static const char* name_of(const void* h) { return is(h, 'f') ? ((const Handle*)h)->name : ""; }

// Records a call; the code it is told to fail with, or what every call but cuInit says before it.
static int record(const char* function, const char* text, int count, const int64_t* arguments) {
  if (call_count == call_room) calls = realloc(calls, (call_room = 2 * call_room + 64) * sizeof *calls);
  Call* call = &calls[call_count++];
  memset(call, 0, sizeof *call);
  call->function = function;
  snprintf(call->text, sizeof call->text, "%s", text);
  call->count = count;
  memcpy(call->arguments, arguments, count * sizeof *arguments);
  for (int i = 0; i < failing_count; i++)
    if (!strcmp(failing[i], function) && fail_after[i]-- <= 0) return fail_code[i];
  return initialized || !strcmp(function, "cuInit") ? SUCCESS : NOT_INITIALIZED;
}

#define RECORD(text, ...)                                                                      \
  do {                                                                                         \
    const int64_t arguments[] = {__VA_ARGS__};                                                 \
    const int code = record(__func__, text, sizeof arguments / sizeof *arguments, arguments); \
    if (code) return code;                                                                     \
  } while (0)
#define REFUSE(condition, code) \
  if (condition) return code

static const struct {
  int code;
  const char *name, *text;
} errors[] = {
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {909, "CUDA_ERROR_TIMEOUT", "wait operation timed out"},
};

// As the real ones: no text for a code that the driver doesn't know.
static int look_up(int code, const char** p, int text) {
  *p = NULL;
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) *p = text ? errors[i].text : errors[i].name;
  return *p ? SUCCESS : INVALID_VALUE;
}
int cuGetErrorName(int code, const char** p) { return look_up(code, p, 0); }
int cuGetErrorString(int code, const char** p) { return look_up(code, p, 1); }

int cuInit(unsigned flags) {
  RECORD("", flags);
  initialized = 1;
  return SUCCESS;
}

int cuDeviceGet(int* device, int ordinal) {
  RECORD("", ordinal);
  REFUSE(ordinal < 0 || ordinal >= SETTING(DEVICES), INVALID_DEVICE);
  *device = ordinal;
  return SUCCESS;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  RECORD("", attribute, device);
  switch (attribute) {
    case 16: *value = SETTING(MULTIPROCESSORS); return SUCCESS;
    case 95: *value = SETTING(COOPERATIVE); return SUCCESS;
    case 97: *value = SETTING(MAX_SHARED); return SUCCESS;
    default: return INVALID_VALUE;
  }
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  RECORD("", device);
  REFUSE(device < 0 || device >= SETTING(DEVICES), INVALID_DEVICE);
  contexts[device].kind = 'c';
  contexts[device].device = device;
  *context = &contexts[device];
  return SUCCESS;
}

int cuCtxGetCurrent(void** context) {
  RECORD("", 0);
  *context = SETTING(CONTEXT) ? &contexts[SETTING(DEVICE)] : NULL;
  return SUCCESS;
}

int cuCtxSetCurrent(void* context) {
  RECORD("", is(context, 'c') ? ((Handle*)context)->device : -1);
  REFUSE(!is(context, 'c'), INVALID_CONTEXT);
  SETTING(CONTEXT) = 1;
  SETTING(DEVICE) = ((Handle*)context)->device;
  return SUCCESS;
}

int cuCtxGetDevice(int* device) {
  RECORD("", 0);
  REFUSE(!SETTING(CONTEXT), INVALID_CONTEXT);
  *device = SETTING(DEVICE);
  return SUCCESS;
}

int cuThreadExchangeStreamCaptureMode(int* mode) {
  RECORD("", *mode);
  const int before = capture_mode;
  capture_mode = *mode;
  *mode = before;
  return SUCCESS;
}

// Memory that was never written, which stays: as drivers that a test has done with, too, are kept.
int cuMemAlloc_v2(unsigned long long* address, size_t bytes) {
  RECORD("", (int64_t)bytes, capture_mode);
  REFUSE(!SETTING(CONTEXT), INVALID_CONTEXT);
  void* memory = malloc(bytes);
  *address = (uintptr_t)memset(memory, 0x7f, bytes);
  return SUCCESS;
}

int cuMemsetD32Async(unsigned long long address, unsigned value, size_t count, void* stream) {
  RECORD("", value, (int64_t)count, (intptr_t)stream);
  for (size_t i = 0; i < count; i++) ((unsigned*)(uintptr_t)address)[i] = value;
  return SUCCESS;
}

int cuModuleLoadData(void** module, const void* image) {
  RECORD(image, 0);
  REFUSE(!SETTING(CONTEXT), INVALID_CONTEXT);
  *module = handle('m', SETTING(DEVICE), "");
  return SUCCESS;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  RECORD(name, 0);
  REFUSE(!is(module, 'm'), INVALID_HANDLE);
  *function = handle('f', ((Handle*)module)->device, name);
  return SUCCESS;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  RECORD(name_of(function), attribute, value);
  REFUSE(!is(function, 'f'), INVALID_HANDLE);
  REFUSE(attribute != 8 && attribute != 9, INVALID_VALUE);
  REFUSE(value < 0 || value > (attribute == 8 ? SETTING(MAX_SHARED) : 100), INVALID_VALUE);
  if (attribute == 8) ((Handle*)function)->max_shared = value;
  return SUCCESS;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* programs, void* function, int threads, size_t shared) {
  RECORD(name_of(function), threads, (int64_t)shared);
  REFUSE(!is(function, 'f'), INVALID_HANDLE);
  REFUSE(!SETTING(CONTEXT), INVALID_CONTEXT);
  // more shared memory than the function may have: none fit
  *programs = (int64_t)shared <= ((Handle*)function)->max_shared ? SETTING(PROGRAMS) : 0;
  return SUCCESS;
}

static int legal(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared) {
  REFUSE(!SETTING(CONTEXT), INVALID_CONTEXT);
  REFUSE(!is(function, 'f') || ((Handle*)function)->device != SETTING(DEVICE), INVALID_HANDLE);
  REFUSE(!x || !y || !z || x > INT32_MAX || y > 65535 || z > 65535, INVALID_VALUE);
  REFUSE(!threads || threads > 1024 || (int64_t)shared > ((Handle*)function)->max_shared, INVALID_VALUE);
  return SUCCESS;
}

static int run(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared, void* stream,
               void** parameters, int cooperative) {
  waiting = 1;
  for (int ms = 0; closed; ms++) {
    REFUSE(ms > 5000, TIMEOUT);
    usleep(1000);
  }
  return on_launch ? on_launch(name_of(function), x, y, z, threads, shared, stream, parameters, cooperative) : SUCCESS;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** parameters, void** extra) {
  RECORD(name_of(function), x, y, z, bx, by, bz, shared, (intptr_t)stream);
  const int code = extra ? INVALID_VALUE : legal(function, x, y, z, bx * by * bz, shared);
  return code ? code : run(function, x, y, z, bx, shared, stream, parameters, 0);
}

int cuLaunchCooperativeKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                              unsigned shared, void* stream, void** parameters) {
  RECORD(name_of(function), x, y, z, bx, by, bz, shared, (intptr_t)stream);
  const int code = legal(function, x, y, z, bx * by * bz, shared);
  REFUSE(code, code);
  REFUSE(!SETTING(COOPERATIVE), NOT_SUPPORTED);
  REFUSE((int64_t)x * y * z > SETTING(PROGRAMS) * SETTING(MULTIPROCESSORS), TOO_LARGE);
  return run(function, x, y, z, bx, shared, stream, parameters, 1);
}
