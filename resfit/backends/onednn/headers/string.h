// Stands in for the C library's header where there is none: what bridge.c calls.
#include <stddef.h>
int memcmp(const void*, const void*, size_t);
void* memcpy(void*, const void*, size_t);
void* memset(void*, int, size_t);
