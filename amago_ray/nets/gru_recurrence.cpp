// The recurrent half of a GRU layer on a processor, forward and backward: see recurrent.py.
//
// Sequences are shared out to threads, which need not wait for each other: each goes through all timesteps of its own.
// The recurrent matrix lies in panels of COLUMNS columns, which stay in the cache, and a panel is multiplied with ROWS
// sequences at a time. Gates follow at once, while products are in the cache's first level.
//
// Shape letters: L timesteps, B sequences, H hidden width (a multiple of COLUMNS), R sequences taken at a time, K entries
// that are summed over.

#include "lanes.h"

namespace {

constexpr int64_t COLUMNS = 2 * LANES;
#ifdef WIDE_REGISTERS
constexpr int64_t ROWS = 12;
#else
constexpr int64_t ROWS = 6;
#endif

struct Shape {
  int64_t L, B, H;
  int threads;
};

// Panels of a matrix (K, N) whose entry (k, n) is x[k * step_k + n * step_n]: (N / COLUMNS, K, COLUMNS).
void pack(const float* x, int64_t step_k, int64_t step_n, int64_t K, int64_t N, float* panels) {
  for (int64_t first = 0; first < N; first += COLUMNS)
    for (int64_t k = 0; k < K; k++)
      for (int64_t n = first; n < first + COLUMNS; n++) *panels++ = x[k * step_k + n * step_n];
}

// sum[r] += x[r] (K,) times a panel (K, COLUMNS); rows of x are `step` apart.
template <int64_t R>
inline void add_product(const float* x, int64_t step, int64_t K, const float* panel, Lanes (&sum)[R][2]) {
  for (int64_t k = 0; k < K; k++) {
    const Lanes left = load(panel + k * COLUMNS), right = load(panel + k * COLUMNS + LANES);
    for (int64_t r = 0; r < R; r++) {
      const float entry = x[r * step + k];
      sum[r][0] += entry * left;
      sum[r][1] += entry * right;
    }
  }
}

struct Forward {
  const float *given, *panels, *bias;  // (L, B, 3H); of the matrix (H, 3H); (3H,)
  float *hidden, *gates, *fresh;       // (L + 1, B, H); (L, B, 3H); (L, B, H)
  Shape s;

  // Columns `first` to `first` + COLUMNS of all three gates, for R sequences from `b` on at timestep `t`.
  template <int64_t R>
  void columns(int64_t t, int64_t b, int64_t first) const {
    const int64_t H = s.H, row = t * s.B + b;
    const float *h = hidden + row * H, *x = given + row * 3 * H + first;
    float *gate = gates + row * 3 * H + first, *n = fresh + row * H + first;
    float* after = hidden + (row + s.B) * H + first;
    for (int64_t g = 0; g < 3; g++) {
      Lanes sum[R][2];
      for (int64_t r = 0; r < R; r++)
        for (int64_t p = 0; p < 2; p++) sum[r][p] = load(bias + g * H + first + p * LANES);
      add_product<R>(h, H, H, panels + (g * H + first) * H, sum);
      for (int64_t r = 0; r < R; r++)
        for (int64_t p = 0; p < 2; p++) {
          const int64_t at = r * 3 * H + g * H + p * LANES;
          store(gate + at, g < 2 ? sigmoid(sum[r][p] + load(x + at)) : sum[r][p]);
        }
    }
    for (int64_t r = 0; r < R; r++)
      for (int64_t p = 0; p < 2; p++) {
        const int64_t at = r * 3 * H + p * LANES, to = r * H + p * LANES;
        const Lanes reset = load(gate + at), update = load(gate + at + H);
        const Lanes value = hyperbolic_tangent(load(x + at + 2 * H) + reset * load(gate + at + 2 * H));
        store(n + to, value);
        store(after + to, value + update * (load(h + first + to) - value));
      }
  }
  template <int64_t R>
  void step(int64_t t, int64_t b) const {
    for (int64_t first = 0; first < s.H; first += COLUMNS) columns<R>(t, b, first);
  }
};

// Gradients of what is added up before each gate. Those of the new one differ: toward what was given it is `d_given`'s
// third part, toward the recurrent product `d_product`, which went through the reset gate.
struct Backward {
  const float *d_out, *panels;           // (L, B, H); of the matrix (3H, H)
  const float *hidden, *gates, *fresh;   // as forward left them
  float *d_hidden, *d_given, *d_product; // (B, H); (L, B, 3H); (L, B, H)
  Shape s;

  template <int64_t R>
  void columns(int64_t t, int64_t b, int64_t first) const {
    const int64_t H = s.H, row = t * s.B + b, later = row + s.B;
    Lanes sum[R][2];
    for (int64_t r = 0; r < R; r++)
      for (int64_t p = 0; p < 2; p++) {
        const int64_t column = first + p * LANES;
        sum[r][p] = load(d_out + (row + r) * H + column);
        if (t + 1 < s.L)
          sum[r][p] += load(d_hidden + (b + r) * H + column) * load(gates + (later + r) * 3 * H + H + column);
      }
    if (t + 1 < s.L) {
      const float* panel = panels + first * 3 * H;
      add_product<R>(d_given + later * 3 * H, 3 * H, 2 * H, panel, sum);
      add_product<R>(d_product + later * H, H, H, panel + 2 * H * COLUMNS, sum);
    }
    for (int64_t r = 0; r < R; r++)
      for (int64_t p = 0; p < 2; p++) {
        const int64_t column = first + p * LANES, at = (row + r) * H + column, gate = (row + r) * 3 * H + column;
        const Lanes reset = load(gates + gate), update = load(gates + gate + H), product = load(gates + gate + 2 * H);
        const Lanes n = load(fresh + at), d_h = sum[r][p], d_n = d_h * (1.0f - update) * (1.0f - n * n);
        store(d_hidden + (b + r) * H + column, d_h);
        store(d_given + gate, d_n * product * reset * (1.0f - reset));
        store(d_given + gate + H, d_h * (load(hidden + at) - n) * update * (1.0f - update));
        store(d_given + gate + 2 * H, d_n);
        store(d_product + at, d_n * reset);
      }
  }
  template <int64_t R>
  void step(int64_t t, int64_t b) const {
    for (int64_t first = 0; first < s.H; first += COLUMNS) columns<R>(t, b, first);
  }
};

// `step` of R or fewer sequences, of the `left` that there are.
template <int64_t R, typename Pass>
int64_t some(const Pass& pass, int64_t t, int64_t b, int64_t left) {
  if constexpr (R > 1)
    if (left < R) return some<R - 1>(pass, t, b, left);
  pass.template step<R>(t, b);
  return R;
}

// All timesteps, from the first on or from the last, of sequences that are shared out evenly.
template <typename Pass>
void run(const Pass& pass, bool backward) {
  const Shape s = pass.s;
#pragma omp parallel for num_threads(s.threads) schedule(static)
  for (int64_t part = 0; part < s.threads; part++) {
    const int64_t first = s.B * part / s.threads, stop = s.B * (part + 1) / s.threads;
    for (int64_t i = 0; i < s.L; i++) {
      const int64_t t = backward ? s.L - 1 - i : i;
      for (int64_t b = first; b < stop;) b += some<ROWS>(pass, t, b, stop - b);
    }
  }
}

}  // namespace

extern "C" {

// hidden[0] is the state to begin with.
void gru_forward(const float* given, const float* weight, const float* bias, float* hidden, float* gates, float* fresh,
                 int64_t L, int64_t B, int64_t H, int threads) {
  std::vector<float> panels(3 * H * H);
  pack(weight, 1, H, H, 3 * H, panels.data());
  run(Forward{given, panels.data(), bias, hidden, gates, fresh, {L, B, H, threads}}, false);
}

void gru_backward(const float* d_out, const float* weight, const float* hidden, const float* gates, const float* fresh,
                  float* d_given, float* d_product, int64_t L, int64_t B, int64_t H, int threads) {
  std::vector<float> panels(3 * H * H), d_hidden(B * H);
  pack(weight, H, 1, 3 * H, H, panels.data());
  run(Backward{d_out, panels.data(), hidden, gates, fresh, d_hidden.data(), d_given, d_product, {L, B, H, threads}},
      true);
}
}
