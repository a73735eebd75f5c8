"""Platform specifics: CPU kernels, the C library's allocator, caches of compiled programs."""
