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
static long errors;
static char first_error[1024];

void dry_log(const char *format, ...) {
  char line[4096];
  va_list arguments;
  va_start(arguments, format);
  int written = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  size_t size = written < 0 ? 0 : (size_t)written < sizeof line - 1 ? (size_t)written : sizeof line - 2;
  line[size++] = '\n';
  pthread_mutex_lock(&lock);
  if (line[0] == 'E') {
    fprintf(stderr, "dry CUDA: %.*s", (int)size - 2, line + 2); /* at once: what follows may end the process */
    if (!errors++) {
      size_t shown = size - 1 < sizeof first_error - 1 ? size - 1 : sizeof first_error - 1;
      memcpy(first_error, line, shown);
      first_error[shown] = 0;
    }
  }
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

/* How many errors there were, and the first of them. */
long dry_errors(void) { return errors; }
const char *dry_first_error(void) { return first_error; }

/* For tests that provoke errors. */
void dry_forgive(void) { errors = 0; }
