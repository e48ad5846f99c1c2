// A library that answers as NVIDIA's driver library does, by a scenario: a text file of lines "key value", which is read anew in every call.
//
//   driver 550.54.15          cuda 12040             gpus 0 1         (those that are there, by number)
//   gpu 0 uuid GPU-…          gpu 0 name …           gpu 0 memory MiB ...      gpu 0 lost 1
//   part 0 1 uuid MIG-…       (the second part of the first GPU)
//   gpu 0 processes 17 18     (those that compute on it; of a part likewise)
//   gpu 0 lingering 3 512 17  (the first 3 questions for its processes after this line has come find these too, and its memory has 512 MiB more)
//   fail <function> <from> <to> <code>               (calls from..to of it answer code; to 0 = all later ones)
//   hang <function> 1                                (its calls return when the line is gone)
//   xid <n> <gpu> <code> <instance>                  (the n-th event, from 1; instance -1 = the whole GPU)
#include <nvml.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GPUS 16
#define PARTS 8
#define NAMES 64

struct nvmlDevice_st { int gpu, part; };
struct nvmlEventSet_st { int seen; };

static struct nvmlDevice_st devices[GPUS][PARTS + 1];
static struct nvmlEventSet_st events;
static int present[GPUS], count, ready;
static struct { char line[128]; int left; } lingering[GPUS][PARTS + 1];
static struct { const char *name; int calls; } calls[NAMES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// find copies the value of a key; 0 = there is none.
static int find(const char *key, char *value, size_t size) {
    char line[512];
    size_t n = strlen(key);
    int found = 0;
    FILE *f = fopen(getenv("NVML_SCENARIO"), "r");
    if (!f) return 0;
    while (!found && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, key, n) == 0 && line[n] == ' ') {
            snprintf(value, size, "%s", line + n + 1);
            found = 1;
        }
    }
    fclose(f);
    return found;
}

static int text(nvmlDevice_t d, const char *field, char *value, size_t size) {
    char key[128];
    if (d.handle->part < 0) snprintf(key, sizeof key, "gpu %d %s", d.handle->gpu, field);
    else snprintf(key, sizeof key, "part %d %d %s", d.handle->gpu, d.handle->part, field);
    return find(key, value, size);
}

static int number(nvmlDevice_t d, const char *field, unsigned long long *n) {
    char value[64];
    if (!text(d, field, value, sizeof value)) return 0;
    *n = strtoull(value, NULL, 10);
    return 1;
}

// enter counts a call, and says what it shall answer at once.
static nvmlReturn_t enter(const char *name) {
    char key[128], value[128];
    int i, n, from, to, code;
    pthread_mutex_lock(&lock);
    for (i = 0; i < NAMES - 1 && calls[i].name && strcmp(calls[i].name, name); i++) {}
    calls[i].name = name;
    n = ++calls[i].calls;
    pthread_mutex_unlock(&lock);
    snprintf(key, sizeof key, "hang %s", name);
    while (find(key, value, sizeof value)) usleep(2000);
    snprintf(key, sizeof key, "fail %s", name);
    if (find(key, value, sizeof value) && sscanf(value, "%d %d %d", &from, &to, &code) == 3 && n >= from && (!to || n <= to)) return (nvmlReturn_t)code;
    return NVML_SUCCESS;
}

static int there(int gpu) {
    char value[128], *p, *rest;
    if (!find("gpus", value, sizeof value)) return 0;
    for (p = strtok_r(value, " ", &rest); p; p = strtok_r(NULL, " ", &rest))
        if (atoi(p) == gpu) return 1;
    return 0;
}

static nvmlReturn_t device(const char *name, nvmlDevice_t d) {
    nvmlDevice_t whole = {&devices[d.handle->gpu][0]};
    unsigned long long lost = 0;
    nvmlReturn_t r = enter(name);
    if (r != NVML_SUCCESS) return r;
    if (!ready) return NVML_ERROR_UNINITIALIZED;
    number(whole, "lost", &lost);
    if (lost || !there(d.handle->gpu)) return NVML_ERROR_GPU_IS_LOST;
    return NVML_SUCCESS;
}

#define ENTER() do { nvmlReturn_t r_ = enter(__func__); if (r_ != NVML_SUCCESS) return r_; } while (0)
#define READY() do { ENTER(); if (!ready) return NVML_ERROR_UNINITIALIZED; } while (0)
#define DEVICE(d) do { nvmlReturn_t r_ = device(__func__, d); if (r_ != NVML_SUCCESS) return r_; } while (0)
#define NUMBER(d, field, into) do { unsigned long long n_; DEVICE(d); if (!number(d, field, &n_)) return NVML_ERROR_NOT_SUPPORTED; into = n_; return NVML_SUCCESS; } while (0)

// linger is what the line says that is left of a task, as long as it is: its memory in MiB, and its processes after what is in pids already.
static unsigned long long linger(nvmlDevice_t d, int asked, char *pids, size_t size) {
    char line[128] = "";
    int n = 0, at = 0;
    unsigned long long memory = 0;
    text(d, "lingering", line, sizeof line);
    pthread_mutex_lock(&lock);
    if (strcmp(lingering[d.handle->gpu][d.handle->part + 1].line, line)) {
        strcpy(lingering[d.handle->gpu][d.handle->part + 1].line, line);
        lingering[d.handle->gpu][d.handle->part + 1].left = atoi(line);
    }
    if (lingering[d.handle->gpu][d.handle->part + 1].left > 0 && sscanf(line, "%d %llu%n", &n, &memory, &at) == 2) {
        snprintf(pids + strlen(pids), size - strlen(pids), " %s", line + at);
        lingering[d.handle->gpu][d.handle->part + 1].left -= asked;
    }
    pthread_mutex_unlock(&lock);
    return memory;
}

nvmlReturn_t nvmlInit_v2(void) {
    int i, j;
    ENTER();
    if (ready++) return NVML_SUCCESS;
    for (i = count = 0; i < GPUS; i++) {
        if (there(i)) present[count++] = i;
        for (j = 0; j <= PARTS; j++) devices[i][j].gpu = i, devices[i][j].part = j - 1;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlShutdown(void) { READY(); ready--; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *n) { READY(); *n = count; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, nvmlDevice_t *d) {
    READY();
    if (i >= (unsigned)count) return NVML_ERROR_INVALID_ARGUMENT;
    d->handle = &devices[present[i]][0];
    return device("handle", *d);
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *v, unsigned int size) { READY(); return find("driver", v, size) ? NVML_SUCCESS : NVML_ERROR_UNKNOWN; }

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *v) {
    char value[32];
    READY();
    if (!find("cuda", value, sizeof value)) return NVML_ERROR_UNKNOWN;
    *v = atoi(value);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *v, unsigned int size) { DEVICE(d); return text(d, "uuid", v, size) ? NVML_SUCCESS : NVML_ERROR_UNKNOWN; }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *v, unsigned int size) { DEVICE(d); return text(d, "name", v, size) ? NVML_SUCCESS : NVML_ERROR_UNKNOWN; }

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *d) {
    char value[128];
    int i, j;
    READY();
    for (i = 0; i < count; i++)
        for (j = 0; j <= PARTS; j++) {
            d->handle = &devices[present[i]][j];
            if (text(*d, "uuid", value, sizeof value) && !strcmp(value, uuid)) return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t d, unsigned int *n) { DEVICE(d); *n = d.handle->gpu; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t d, unsigned int *n) { unsigned int i; DEVICE(d); for (i = 0; present[i] != d.handle->gpu; i++) {} *n = i; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *p) {
    DEVICE(d);
    memset(p, 0, sizeof *p);
    return text(d, "bus", p->busId, sizeof p->busId) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m) {
    unsigned long long total, used = 0;
    char none[64] = "";
    DEVICE(d);
    if (!number(d, "memory", &total)) return NVML_ERROR_NOT_SUPPORTED;
    number(d, "used", &used);
    used += linger(d, 0, none, sizeof none);
    m->total = total << 20, m->used = used << 20, m->free = (total - used) << 20;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t d, nvmlBAR1Memory_t *m) {
    unsigned long long total;
    DEVICE(d);
    if (!number(d, "bar1", &total)) return NVML_ERROR_NOT_SUPPORTED;
    m->bar1Total = m->bar1Free = total << 20, m->bar1Used = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t d, unsigned int *v) { NUMBER(d, "power_limit", *v); }
nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned int *v) { NUMBER(d, "power", *v); }
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t d, nvmlTemperatureSensors_t s, unsigned int *v) { (void)s; NUMBER(d, "temperature", *v); }
nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t d, nvmlClockType_t t, unsigned int *v) { NUMBER(d, t == NVML_CLOCK_MEM ? "memory_clock" : "cores_clock", *v); }
nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(nvmlDevice_t d, unsigned int *v) { NUMBER(d, "pcie_generation", *v); }
nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(nvmlDevice_t d, unsigned int *v) { NUMBER(d, "pcie_width", *v); }
nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t d, nvmlEnableState_t *v) { NUMBER(d, "display", *v); }
nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t d, nvmlEnableState_t *v) { NUMBER(d, "persistence", *v); }

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t d, int *major, int *minor) {
    char value[32];
    DEVICE(d);
    if (!text(d, "capability", value, sizeof value) || sscanf(value, "%d.%d", major, minor) != 2) return NVML_ERROR_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u) {
    unsigned long long n;
    DEVICE(d);
    if (!number(d, "utilization", &n)) return NVML_ERROR_NOT_SUPPORTED;
    u->gpu = n, u->memory = n / 2;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, nvmlMemoryErrorType_t t, nvmlEccCounterType_t c, unsigned long long *v) { (void)t, (void)c; NUMBER(d, "ecc", *v); }
nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t d, nvmlEnableState_t *v) { NUMBER(d, "retiring", *v); }

// list fills in the processes that compute on a device.
#define LIST(d, count, infos) do { \
    char pids_[512] = "", *p_, *rest_; \
    unsigned int n_ = 0; \
    DEVICE(d); \
    if (text(d, "unlisted", pids_, sizeof pids_)) return NVML_ERROR_NOT_SUPPORTED; \
    text(d, "processes", pids_, sizeof pids_); \
    linger(d, 1, pids_, sizeof pids_); \
    for (p_ = strtok_r(pids_, " ", &rest_); p_; p_ = strtok_r(NULL, " ", &rest_), n_++) \
        if (n_ < *count) memset(&infos[n_], 0, sizeof infos[n_]), infos[n_].pid = atoi(p_); \
    if (n_ > *count) { *count = n_; return NVML_ERROR_INSUFFICIENT_SIZE; } \
    *count = n_; \
    return NVML_SUCCESS; \
} while (0)

#ifdef OLD
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t d, unsigned int *count, nvmlProcessInfo_v1_t *infos) { LIST(d, count, infos); }
#else
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned int *count, nvmlProcessInfo_t *infos) { LIST(d, count, infos); }

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *m) {
    unsigned long long total, used = 0;
    char none[64] = "";
    DEVICE(d);
    if (m->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (!number(d, "memory", &total)) return NVML_ERROR_NOT_SUPPORTED;
    number(d, "used", &used);
    used += linger(d, 0, none, sizeof none);
    m->total = total << 20, m->reserved = 0, m->used = used << 20, m->free = (total - used) << 20;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned int *corrected, unsigned int *uncorrected, unsigned int *pending, unsigned int *failed) {
    unsigned long long p = 0, f = 0;
    DEVICE(d);
    number(d, "remap_pending", &p), number(d, "remap_failed", &f);
    *corrected = *uncorrected = 0, *pending = p, *failed = f;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *v) { NUMBER(d, "reasons", *v); }

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned int *current, unsigned int *pending) {
    unsigned long long n;
    DEVICE(d);
    if (!number(d, "mig", &n)) return NVML_ERROR_NOT_SUPPORTED;
    *current = *pending = n;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, unsigned int *n) { DEVICE(d); *n = PARTS - 1; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, unsigned int i, nvmlDevice_t *part) {
    char value[128];
    DEVICE(d);
    if (i >= PARTS) return NVML_ERROR_INVALID_ARGUMENT;
    part->handle = &devices[d.handle->gpu][i + 1];
    return text(*part, "uuid", value, sizeof value) ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t d, unsigned int *is) { DEVICE(d); *is = d.handle->part >= 0; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t d, nvmlDevice_t *whole) { DEVICE(d); whole->handle = &devices[d.handle->gpu][0]; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t d, unsigned int *id) { DEVICE(d); *id = 0; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t d, unsigned int *id) { NUMBER(d, "instance", *id); }

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t d, unsigned int link, nvmlEnableState_t *v) {
    char field[32], value[64];
    DEVICE(d);
    snprintf(field, sizeof field, "link%u", link);
    if (!text(d, field, value, sizeof value)) return NVML_ERROR_NOT_SUPPORTED;
    *v = strcmp(value, "off") ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t d, unsigned int link, nvmlPciInfo_t *p) {
    char field[32];
    DEVICE(d);
    snprintf(field, sizeof field, "link%u", link);
    memset(p, 0, sizeof *p);
    return text(d, field, p->busId, sizeof p->busId) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) { READY(); set->handle = &events; return NVML_SUCCESS; }
nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) { (void)set; ENTER(); return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t d, unsigned long long *types) { DEVICE(d); *types = nvmlEventTypeXidCriticalError; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, nvmlEventSet_t set) { (void)types, (void)set; DEVICE(d); return NVML_SUCCESS; }

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int ms) {
    unsigned int waited;
    ENTER();
    for (waited = 0; waited < ms; waited += 5) {
        char key[32], value[64];
        int gpu, code, instance;
        snprintf(key, sizeof key, "xid %d", set.handle->seen + 1);
        if (find(key, value, sizeof value) && sscanf(value, "%d %d %d", &gpu, &code, &instance) == 3) {
            set.handle->seen++;
            data->device.handle = &devices[gpu][0];
            data->eventType = nvmlEventTypeXidCriticalError;
            data->eventData = code;
            data->gpuInstanceId = data->computeInstanceId = instance;
            return NVML_SUCCESS;
        }
        usleep(5000);
    }
    return NVML_ERROR_TIMEOUT;
}
#endif
