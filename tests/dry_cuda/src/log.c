/* The log: text that grows until Python takes it. */
#include "dry.h"
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *text, *taken;
static size_t length, capacity;

void dry_log(const char *format, ...) {
  char line[4096];
  va_list arguments;
  va_start(arguments, format);
  int written = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  size_t size = written < 0 ? 0 : (size_t)written < sizeof line - 1 ? (size_t)written : sizeof line - 2;
  line[size++] = '\n';
  pthread_mutex_lock(&lock);
  if (length + size + 1 > capacity) {
    capacity = 2 * (length + size + 1) + 65536;
    text = realloc(text, capacity);
    if (!text) abort();
  }
  memcpy(text + length, line, size);
  length += size;
  pthread_mutex_unlock(&lock);
}

/* The lines since the last call, valid until the next one. */
const char *dry_take(void) {
  pthread_mutex_lock(&lock);
  free(taken);
  taken = text;
  if (taken) taken[length] = 0;
  text = NULL;
  length = capacity = 0;
  pthread_mutex_unlock(&lock);
  return taken ? taken : "";
}
