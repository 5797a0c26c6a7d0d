// Registers of floats: what the kernels of this folder share (see kernels.py).
//
// A register has LANES floats. Arithmetic is written with operators of GCC and Clang, so that each processor gets its own.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

#if defined(__AVX512F__) || defined(SIXTEEN_LANES)
#define WIDE_REGISTERS  // 32 of 16 floats, and not 16 of 8
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES), aligned(4)));

inline Lanes load(const float* x) { return *reinterpret_cast<const Lanes*>(x); }
inline void store(float* x, Lanes value) { *reinterpret_cast<Lanes*>(x) = value; }
inline Lanes all(float x) { return x - Lanes{}; }
inline Lanes larger(Lanes x, Lanes y) { return x > y ? x : y; }
inline int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Of a register's floats: the sum, and the largest; by halves, so that few of them wait for each other.
inline float total(Lanes x) {
  float y[LANES];
  store(y, x);
  for (int64_t half = LANES / 2; half; half /= 2)
    for (int64_t n = 0; n < half; n++) y[n] += y[n + half];
  return y[0];
}
inline float largest(Lanes x) {
  float y[LANES];
  store(y, x);
  for (int64_t half = LANES / 2; half; half /= 2)
    for (int64_t n = 0; n < half; n++) y[n] = y[n] > y[n + half] ? y[n] : y[n + half];
  return y[0];
}

// e^x for x <= 0 or thereabouts, to 2e-7 of its value; below -87 that of -87. NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r is its Taylor polynomial of order 7; n goes into the exponent.
inline Lanes exponential(Lanes x) {
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const Lanes shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: what is left of the fraction is n
  const Lanes n = shifted - 12582912.0f;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Lanes y = r * (1.0f / 5040) + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  Bits bits, exponent;
  std::memcpy(&bits, &y, sizeof y);
  std::memcpy(&exponent, &shifted, sizeof shifted);
  bits += exponent << 23;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// 1 / (1 + e^-x), to 3e-7 of its value.
inline Lanes sigmoid(Lanes x) {
  const Lanes e = exponential(x < all(0.0f) ? x : -x);
  return (x < all(0.0f) ? e : all(1.0f)) / (1.0f + e);
}

// tanh x, to 1e-6 of its value: near 0 by its Taylor polynomial of order 9, for 1 - e^-2|x| has lost its digits there.
inline Lanes hyperbolic_tangent(Lanes x) {
  const Lanes size = x < all(0.0f) ? -x : x, e = exponential(-2.0f * size);
  const Lanes far = (1.0f - e) / (1.0f + e), square = x * x;
  Lanes near = square * (62.0f / 2835) - 17.0f / 315;
  near = near * square + 2.0f / 15;
  near = near * square - 1.0f / 3;
  near = near * square * x + x;
  return size < all(0.25f) ? near : (x < all(0.0f) ? -far : far);
}

// This thread's memory for `size` floats.
inline float* scratch(int64_t size) {
  static thread_local std::vector<float> memory;
  if (int64_t(memory.size()) < size) memory.resize(size);
  return memory.data();
}

}  // namespace
