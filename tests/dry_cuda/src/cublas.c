/* Matrix products: written down with sizes and types, operands checked to lie in device memory, nothing computed. */
#include "dry.h"
#include <stdlib.h>

typedef long long Stride;

enum { NOT_TRANSPOSED = 0, FLOAT32 = 0, FLOAT64 = 1, FLOAT16 = 2, BFLOAT16 = 14 }; /* cublasOperation_t, cudaDataType */

typedef struct {
  int math_mode;
} Handle;

typedef struct {
  const void *pointer; /* of the matrix, or of the first of a strided batch */
  int type, rows, columns, leading;
  Stride stride;
} Matrix;

static const char *type_name(int type) {
  switch (type) {
    case FLOAT32: return "float32";
    case FLOAT64: return "float64";
    case FLOAT16: return "float16";
    case BFLOAT16: return "bfloat16";
    default: return "other";
  }
}

static size_t type_bytes(int type) { return type == FLOAT64 ? 8 : type == FLOAT32 ? 4 : 2; }

/* cublasComputeType_t: what sums are kept in. */
static const char *compute_name(int type) {
  switch (type) {
    case 64: return "float16";
    case 65: return "float16 pedantic";
    case 68: return "float32";
    case 69: return "float32 pedantic";
    case 74: return "float32 fast float16";
    case 75: return "float32 fast bfloat16";
    case 77: return "float32 fast tf32";
    case 70: return "float64";
    default: return "other";
  }
}

static Matrix matrix(const void *pointer, int transposed, int rows, int columns, int type, int leading, Stride stride) {
  int swap = transposed != NOT_TRANSPOSED;
  return (Matrix){pointer, type, swap ? columns : rows, swap ? rows : columns, leading, stride};
}

static void check(const Matrix *of, int batch, const char *function, const char *what) {
  if (of->rows <= 0 || of->columns <= 0 || batch <= 0) return;
  size_t elements = (size_t)of->stride * (size_t)(batch - 1) + (size_t)of->leading * (size_t)(of->columns - 1);
  dry_need_device(of->pointer, (elements + (size_t)of->rows) * type_bytes(of->type), function, what);
}

static int product(const Handle *handle, const char *function, int k, const Matrix *left, const Matrix *right,
                   const Matrix *result, int batch, const char *compute) {
  dry_log("G\t%s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t%s\t%d", function, result->rows, result->columns, k, batch,
          type_name(left->type), type_name(right->type), type_name(result->type), compute, handle->math_mode);
  return 0;
}

static int strided(const Handle *handle, const char *function, int k, Matrix left, Matrix right, Matrix result,
                   int batch, const char *compute) {
  check(&left, batch, function, "the left matrix");
  check(&right, batch, function, "the right matrix");
  check(&result, batch, function, "the result");
  return product(handle, function, k, &left, &right, &result, batch, compute);
}

/* The pointers to the matrices lie in device memory themselves, which is host memory here. */
static void check_each(Matrix of, int batch, const char *function, const char *what) {
  void *const *pointers = of.pointer;
  size_t bytes = (size_t)batch * sizeof *pointers;
  dry_need_device(pointers, bytes, function, what);
  for (int index = 0; index < batch && dry_is_device(pointers, bytes); index++) {
    of.pointer = pointers[index];
    check(&of, 1, function, what);
  }
}

static int batched(const Handle *handle, const char *function, int k, Matrix left, Matrix right, Matrix result,
                   int batch, const char *compute) {
  check_each(left, batch, function, "the left matrices");
  check_each(right, batch, function, "the right matrices");
  check_each(result, batch, function, "the results");
  return product(handle, function, k, &left, &right, &result, batch, compute);
}

int cublasCreate_v2(Handle **handle) {
  *handle = calloc(1, sizeof **handle);
  return 0;
}

int cublasDestroy_v2(Handle *handle) {
  free(handle);
  return 0;
}

int cublasSetMathMode(Handle *handle, int mode) {
  handle->math_mode = mode;
  return 0;
}

int cublasGetMathMode(const Handle *handle, int *mode) {
  *mode = handle->math_mode;
  return 0;
}

int cublasGemmEx(Handle *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int a_type,
                 int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                 int compute, int algorithm) {
  (void)alpha, (void)beta, (void)algorithm;
  return strided(handle, "cublasGemmEx", k, matrix(a, ta, m, k, a_type, lda, 0), matrix(b, tb, k, n, b_type, ldb, 0),
                 matrix(c, 0, m, n, c_type, ldc, 0), 1, compute_name(compute));
}

int cublasGemmStridedBatchedEx(Handle *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                               int a_type, int lda, Stride stride_a, const void *b, int b_type, int ldb,
                               Stride stride_b, const void *beta, void *c, int c_type, int ldc, Stride stride_c,
                               int batch, int compute, int algorithm) {
  (void)alpha, (void)beta, (void)algorithm;
  return strided(handle, "cublasGemmStridedBatchedEx", k, matrix(a, ta, m, k, a_type, lda, stride_a),
                 matrix(b, tb, k, n, b_type, ldb, stride_b), matrix(c, 0, m, n, c_type, ldc, stride_c), batch,
                 compute_name(compute));
}

int cublasGemmBatchedEx(Handle *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *const *a,
                        int a_type, int lda, const void *const *b, int b_type, int ldb, const void *beta,
                        void *const *c, int c_type, int ldc, int batch, int compute, int algorithm) {
  (void)alpha, (void)beta, (void)algorithm;
  return batched(handle, "cublasGemmBatchedEx", k, matrix(a, ta, m, k, a_type, lda, 0),
                 matrix(b, tb, k, n, b_type, ldb, 0), matrix(c, 0, m, n, c_type, ldc, 0), batch, compute_name(compute));
}

int cublasSgemm_v2(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha, const float *a, int lda,
                   const float *b, int ldb, const float *beta, float *c, int ldc) {
  (void)alpha, (void)beta;
  return strided(handle, "cublasSgemm", k, matrix(a, ta, m, k, FLOAT32, lda, 0), matrix(b, tb, k, n, FLOAT32, ldb, 0),
                 matrix(c, 0, m, n, FLOAT32, ldc, 0), 1, "float32");
}

int cublasSgemmStridedBatched(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha, const float *a,
                              int lda, Stride stride_a, const float *b, int ldb, Stride stride_b, const float *beta,
                              float *c, int ldc, Stride stride_c, int batch) {
  (void)alpha, (void)beta;
  return strided(handle, "cublasSgemmStridedBatched", k, matrix(a, ta, m, k, FLOAT32, lda, stride_a),
                 matrix(b, tb, k, n, FLOAT32, ldb, stride_b), matrix(c, 0, m, n, FLOAT32, ldc, stride_c), batch,
                 "float32");
}

int cublasSgemmBatched(Handle *handle, int ta, int tb, int m, int n, int k, const float *alpha, const float *const *a,
                       int lda, const float *const *b, int ldb, const float *beta, float *const *c, int ldc,
                       int batch) {
  (void)alpha, (void)beta;
  return batched(handle, "cublasSgemmBatched", k, matrix(a, ta, m, k, FLOAT32, lda, 0),
                 matrix(b, tb, k, n, FLOAT32, ldb, 0), matrix(c, 0, m, n, FLOAT32, ldc, 0), batch, "float32");
}

/* Transposes, and adds; onnxruntime transposes fp32 matrices with it. */
int cublasSgeam(Handle *handle, int ta, int tb, int m, int n, const float *alpha, const float *a, int lda,
                const float *beta, const float *b, int ldb, float *c, int ldc) {
  Matrix left = matrix(a, ta, m, n, FLOAT32, lda, 0), right = matrix(b, tb, m, n, FLOAT32, ldb, 0);
  Matrix result = matrix(c, 0, m, n, FLOAT32, ldc, 0);
  (void)handle, (void)alpha, (void)beta;
  check(&left, 1, "cublasSgeam", "the left matrix");
  if (b != c) check(&right, 1, "cublasSgeam", "the right matrix");
  check(&result, 1, "cublasSgeam", "the result");
  dry_log("L\tcublasSgeam");
  return 0;
}
