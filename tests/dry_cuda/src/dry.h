/* What the stand-in libraries share: a log of what was asked of them, and which memory belongs to the device.
 *
 * A log line is a letter and fields, separated by tabs:
 *   K kernel-number                                            a kernel launch; dry_kernel_name() gives the name
 *   G function m n k batch left right result compute math      a matrix product, as cuBLAS counts (column-major)
 *   C direction bytes                                          a copy: h2d, d2h, d2d or h2h
 *   M bytes | F bytes                                          device memory taken, given back
 *   H bytes                                                    pinned host memory taken
 *   Z bytes                                                    device memory set to a value
 *   Y what                                                     the host waits for the device
 *   L function                                                 any other library call that does work
 *   E message                                                  something that a device would not have survived
 */
#ifndef DRY_H
#define DRY_H
#include <stddef.h>

void dry_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Whether all of [pointer, pointer + bytes) lies in one piece of device memory. */
int dry_is_device(const void *pointer, size_t bytes);

/* Logs an error unless that is so, and says whether it is; a null pointer and nothing to read are fine. */
int dry_need_device(const void *pointer, size_t bytes, const char *who, const char *what);

#endif
