// Causal attention of narrow heads on a processor, forward and backward: see narrow_attention.py.
//
// One head of one sequence at a time, whose L x K matrices lie in the cache. Queries are taken ROWS at a time; their
// weights exist for that long only, and are computed again in backward (Dao et al. 2022, arXiv 2205.14135). A register
// has LANES keys where there are keys in columns, and LANES entries of a head where there are those: no sum runs across
// a register, but those of the softmax. All arithmetic is in float32.
//
// Sequences lie end to end, each from one of `bounds` (B + 1,) to the next.
//
// Shape letters: B sequences, R timesteps of all of them, L of one, H heads, K head width (a multiple of LANES).

#include "lanes.h"

namespace {

#ifdef WIDE_REGISTERS
constexpr int64_t ROWS = 8;
#else
constexpr int64_t ROWS = 4;
#endif
constexpr float HIDDEN = -1e30f;  // the logit of a key that a query does not see

struct BFloat16 { uint16_t bits; };

inline float widened(float x) { return x; }
inline float widened(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
inline void narrow(float x, float& to) { to = x; }
inline void narrow(float x, BFloat16& to) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof x);
  to.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// out (L, K) = scale * x, of which timesteps are `stride` apart.
template <typename T, int64_t K>
void gather(const T* x, int64_t stride, int64_t L, float scale, float* out) {
  for (int64_t l = 0; l < L; l++)
    for (int64_t k = 0; k < K; k++) out[l * K + k] = widened(x[l * stride + k]) * scale;
}

template <typename T, int64_t K>
void scatter(const float* x, float scale, int64_t L, T* out, int64_t stride) {
  for (int64_t l = 0; l < L; l++)
    for (int64_t k = 0; k < K; k++) narrow(x[l * K + k] * scale, out[l * stride + k]);
}

// out (K, width) = x (L, K) transposed, zeros behind it.
template <int64_t K>
void transpose(const float* x, int64_t L, int64_t width, float* out) {
  for (int64_t k = 0; k < K; k++) {
    for (int64_t l = 0; l < L; l++) out[k * width + l] = x[l * K + k];
    for (int64_t l = L; l < width; l++) out[k * width + l] = 0.0f;
  }
}

// out[r][j] = sum_k x[r][k] y[k][j] for j from `first` (a multiple of LANES) to `stop`, rounded up; y, out: rows of `width`.
template <int64_t K, int64_t COLUMNS>
int64_t some_products(const float* x, const float* y, int64_t width, int64_t first, int64_t stop, float* out) {
  int64_t j = first;
  for (; j + (COLUMNS - 1) * LANES < stop; j += COLUMNS * LANES) {
    Lanes sum[ROWS][COLUMNS] = {};
    for (int64_t k = 0; k < K; k++)
      for (int64_t c = 0; c < COLUMNS; c++) {
        const Lanes column = load(y + k * width + j + c * LANES);
        for (int64_t r = 0; r < ROWS; r++) sum[r][c] += x[r * K + k] * column;
      }
    for (int64_t r = 0; r < ROWS; r++)
      for (int64_t c = 0; c < COLUMNS; c++) store(out + r * width + j + c * LANES, sum[r][c]);
  }
  return j;
}

template <int64_t K>
void products(const float* x, const float* y, int64_t width, int64_t first, int64_t stop, float* out) {
  some_products<K, 1>(x, y, width, some_products<K, 2>(x, y, width, first, stop, out), stop, out);
}

// out[r][k] = sum_j w[r][j] y[j][k] for j from `first` to before `stop`; w: rows of `width`.
template <int64_t K>
void weighted_sums(const float* w, const float* y, int64_t width, int64_t first, int64_t stop, float* out) {
  constexpr int64_t PARTS = K / LANES;
  Lanes sum[ROWS][PARTS] = {};
  for (int64_t j = first; j < stop; j++)
    for (int64_t p = 0; p < PARTS; p++) {
      const Lanes part = load(y + j * K + p * LANES);
      for (int64_t r = 0; r < ROWS; r++) sum[r][p] += w[r * width + j] * part;
    }
  for (int64_t r = 0; r < ROWS; r++)
    for (int64_t p = 0; p < PARTS; p++) store(out + r * K + p * LANES, sum[r][p]);
}

// y[j][k] += sum_r w[r][j] x[r][k] for the same j.
template <int64_t K>
void spread(const float* w, const float* x, int64_t width, int64_t first, int64_t stop, float* y) {
  for (int64_t p = 0; p < K; p += LANES) {
    Lanes part[ROWS];
    for (int64_t r = 0; r < ROWS; r++) part[r] = load(x + r * K + p);
    for (int64_t j = first; j < stop; j++) {
      Lanes sum = load(y + j * K + p);
      for (int64_t r = 0; r < ROWS; r++) sum += w[r * width + j] * part[r];
      store(y + j * K + p, sum);
    }
  }
}

// Which keys the ROWS queries from `row` on see, out of L: those from `first` (rounded down) to before `stop`.
struct Band {
  int64_t row, rows, first, stop, window;

  Band(int64_t row, int64_t L, int64_t window) : row(row), rows(L - row < ROWS ? L - row : ROWS), window(window) {
    first = row < window ? 0 : (row - window + 1) / LANES * LANES;
    stop = row + rows;
  }
  // x in the lanes of keys from `key` on that query row + r sees, `value` in the others.
  Lanes seen(int64_t r, int64_t key, Lanes x, float value) const {
    Bits ahead;  // of the last key that it sees
    for (int64_t n = 0; n < LANES; n++) ahead[n] = int32_t(n);
    ahead += int32_t(key - row - r);
    return (ahead <= 0) & (ahead > int32_t(-window)) ? x : all(value);
  }
};

struct Shape {
  int64_t B, H, window;
  int threads;
};

// qkv: (R, 3, H, K). out: (R, H, K). lse: (R, H), the logarithm of the sum of each query's exponentials.
template <typename T, int64_t K>
void forward(const T* qkv, const int64_t* bounds, T* out, float* lse, Shape s) {
  const float scale = 1.0f / std::sqrt(float(K));
#pragma omp parallel for num_threads(s.threads) schedule(dynamic)
  for (int64_t task = 0; task < s.B * s.H; task++) {
    const int64_t h = task % s.H, start = bounds[task / s.H], L = bounds[task / s.H + 1] - start;
    const int64_t padded = up(L, ROWS), width = up(L, 2 * LANES), next = s.H * K;  // from queries to keys to values
    const T* head = qkv + (start * 3 * s.H + h) * K;
    float* q = scratch((padded + L + width + L) * K + ROWS * (width + K));
    float *k = q + padded * K, *k_columns = k + L * K, *v = k_columns + width * K;
    float *w = v + L * K, *y = w + ROWS * width;
    gather<T, K>(head, 3 * next, L, scale, q);
    gather<T, K>(head + next, 3 * next, L, 1.0f, k);
    gather<T, K>(head + 2 * next, 3 * next, L, 1.0f, v);
    std::memset(q + L * K, 0, (padded - L) * K * sizeof(float));
    transpose<K>(k, L, width, k_columns);
    for (int64_t row = 0; row < L; row += ROWS) {
      const Band band(row, L, s.window);
      products<K>(q + row * K, k_columns, width, band.first, band.stop, w);
      float sum[ROWS];
      for (int64_t r = 0; r < ROWS; r++) {
        float* w_r = w + r * width;
        Lanes high = all(HIDDEN), sums = {};
        for (int64_t j = band.first; j < band.stop; j += LANES) {
          const Lanes logits = band.seen(r, j, load(w_r + j), HIDDEN);
          store(w_r + j, logits);
          high = larger(logits, high);
        }
        const float most = largest(high);
        for (int64_t j = band.first; j < band.stop; j += LANES) {
          const Lanes weights = band.seen(r, j, exponential(load(w_r + j) - most), 0.0f);
          store(w_r + j, weights);
          sums += weights;
        }
        sum[r] = total(sums);
        if (r < band.rows) lse[(start + row + r) * s.H + h] = most + std::log(sum[r]);
      }
      weighted_sums<K>(w, v, width, band.first, band.stop, y);
      for (int64_t r = 0; r < band.rows; r++)
        scatter<T, K>(y + r * K, 1.0f / sum[r], 1, out + ((start + row + r) * s.H + h) * K, 0);
    }
  }
}

// d_qkv as qkv; d_out: (R, H, K). With weights w = e^(logits - lse):
// dw = d_out v^T, d_logits = w (dw - sum w dw), dq = d_logits k, dk = d_logits^T q, dv = w^T d_out.
template <typename T, int64_t K>
void backward(const T* qkv, const int64_t* bounds, const T* d_out, const float* lse, T* d_qkv, Shape s) {
  const float scale = 1.0f / std::sqrt(float(K));
#pragma omp parallel for num_threads(s.threads) schedule(dynamic)
  for (int64_t task = 0; task < s.B * s.H; task++) {
    const int64_t h = task % s.H, start = bounds[task / s.H], L = bounds[task / s.H + 1] - start;
    const int64_t padded = up(L, ROWS), width = up(L, 2 * LANES), next = s.H * K;
    const int64_t at = (start * 3 * s.H + h) * K, at_out = (start * s.H + h) * K;
    float* q = scratch((2 * padded + 4 * L + 2 * width + ROWS) * K + 2 * ROWS * width);
    float *dy = q + padded * K, *k = dy + padded * K, *v = k + L * K, *dk = v + L * K, *dv = dk + L * K;
    float *k_columns = dv + L * K, *v_columns = k_columns + width * K, *dq = v_columns + width * K;
    float *w = dq + ROWS * K, *d_logits = w + ROWS * width;
    gather<T, K>(qkv + at, 3 * next, L, scale, q);
    gather<T, K>(qkv + at + next, 3 * next, L, 1.0f, k);
    gather<T, K>(qkv + at + 2 * next, 3 * next, L, 1.0f, v);
    gather<T, K>(d_out + at_out, next, L, 1.0f, dy);
    std::memset(q + L * K, 0, (padded - L) * K * sizeof(float));
    std::memset(dy + L * K, 0, (padded - L) * K * sizeof(float));
    std::memset(dk, 0, 2 * L * K * sizeof(float));
    transpose<K>(k, L, width, k_columns);
    transpose<K>(v, L, width, v_columns);
    for (int64_t row = 0; row < L; row += ROWS) {
      const Band band(row, L, s.window);
      products<K>(q + row * K, k_columns, width, band.first, band.stop, w);
      products<K>(dy + row * K, v_columns, width, band.first, band.stop, d_logits);
      for (int64_t r = 0; r < ROWS; r++) {
        float *w_r = w + r * width, *d_r = d_logits + r * width;
        if (r >= band.rows) {
          std::memset(w_r + band.first, 0, (band.stop - band.first) * sizeof(float));
          std::memset(d_r + band.first, 0, (band.stop - band.first) * sizeof(float));
          continue;
        }
        const float log_sum = lse[(start + row + r) * s.H + h];
        Lanes sums = {};
        for (int64_t j = band.first; j < band.stop; j += LANES) {
          const Lanes weights = band.seen(r, j, exponential(load(w_r + j) - log_sum), 0.0f);
          store(w_r + j, weights);
          sums += band.seen(r, j, weights * load(d_r + j), 0.0f);
        }
        const float mean = total(sums);
        for (int64_t j = band.first; j < band.stop; j += LANES)
          store(d_r + j, band.seen(r, j, load(w_r + j) * (load(d_r + j) - mean), 0.0f));
      }
      weighted_sums<K>(d_logits, k, width, band.first, band.stop, dq);
      spread<K>(d_logits, q + row * K, width, band.first, band.stop, dk);
      spread<K>(w, dy + row * K, width, band.first, band.stop, dv);
      scatter<T, K>(dq, scale, band.rows, d_qkv + at + row * 3 * next, 3 * next);
    }
    scatter<T, K>(dk, 1.0f, L, d_qkv + at + next, 3 * next);
    scatter<T, K>(dv, 1.0f, L, d_qkv + at + 2 * next, 3 * next);
  }
}

}  // namespace

#define FOR_WIDTH(T, K)                                                                                              \
  extern "C" void forward_##T##_##K(const void* qkv, const int64_t* bounds, void* out, float* lse, int64_t B,        \
                                    int64_t H, int64_t window, int threads) {                                       \
    forward<T, K>(static_cast<const T*>(qkv), bounds, static_cast<T*>(out), lse, {B, H, window, threads});           \
  }                                                                                                                 \
  extern "C" void backward_##T##_##K(const void* qkv, const int64_t* bounds, const void* d_out, const float* lse,    \
                                     void* d_qkv, int64_t B, int64_t H, int64_t window, int threads) {              \
    backward<T, K>(static_cast<const T*>(qkv), bounds, static_cast<const T*>(d_out), lse, static_cast<T*>(d_qkv),    \
                   {B, H, window, threads});                                                                        \
  }

FOR_WIDTH(float, 16)
FOR_WIDTH(float, 32)
FOR_WIDTH(BFloat16, 16)
FOR_WIDTH(BFloat16, 32)
