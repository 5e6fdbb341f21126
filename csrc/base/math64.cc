// Argument reduction in two or three exact parts (Cody and Waite, "Software Manual for the Elementary Functions",
// 1980), then Taylor series long enough that their remainder is below 2^-58 of the result. The build must pass
// -ffp-contract=off: a fused multiply-add would change the last bit.
#include "base/math64.h"

#include <cstdint>
#include <cstring>

namespace mdrt {
namespace {

// The high parts have so few bits that their product with the reduction's integer is exact.
constexpr double ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
constexpr double half_pi_high = 0x1.921fb544p+0, half_pi_middle = 0x1.0b4611a6p-34, half_pi_low = 0x1.3198a2e037073p-69;

uint64_t to_bits(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

double from_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

double power_of_two(int exponent) { return from_bits(static_cast<uint64_t>(exponent + 1023) << 52); }   // -1022..1023

int nearest(double x) { return static_cast<int>(x < 0 ? x - 0.5 : x + 0.5); }

template <int count>
double polynomial(const double (&coefficients)[count], double x) {
  double sum = coefficients[count - 1];
  for (int i = count - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// value + rest, |value| <= pi/4, congruent to x modulo pi/2.
struct Reduced {
  double value, rest;
  int quadrant;   // 0..3
};

Reduced reduce(double x) {
  if (!(x >= -1e6 && x <= 1e6)) return {from_bits(0x7ff8000000000000), 0, 0};
  const int n = nearest(x * 0x1.45f306dc9c883p-1);   // 2/pi
  const double high = x - n * half_pi_high;
  const double middle = n * half_pi_middle;
  // The subtraction's rounding error is recovered exactly (Knuth's two-sum): nothing is lost near multiples of pi/2.
  const double value = high - middle;
  const double back = high - value;
  const double error = (high - (value + back)) + (back - middle);
  const double rest = error - n * half_pi_low;
  const double sum = value + rest;
  return {sum, (value - sum) + rest, n & 3};
}

// sin(r.value + r.rest), |r.value| <= pi/4.
double sine_near_zero(const Reduced& r) {
  static const double coefficients[] = {-1.0 / 6,          1.0 / 120,           -1.0 / 5040,        1.0 / 362880,
                                        -1.0 / 39916800.0, 1.0 / 6227020800.0, -1.0 / 1307674368000.0,
                                        1.0 / 355687428096000.0};
  const double square = r.value * r.value;
  return r.value + (r.value * square * polynomial(coefficients, square) + r.rest * (1 - 0.5 * square));
}

double cosine_near_zero(const Reduced& r) {
  static const double coefficients[] = {1.0 / 24,          -1.0 / 720,           1.0 / 40320,          -1.0 / 3628800,
                                        1.0 / 479001600.0, -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
  const double square = r.value * r.value;
  const double half = 0.5 * square;
  const double head = 1 - half;
  return head + (((1 - head) - half) + (square * square * polynomial(coefficients, square) - r.value * r.rest));
}

}  // namespace

double exp64(double x) {
  if (x != x) return x;
  if (x > 709.8) return from_bits(0x7ff0000000000000);
  if (x < -745.2) return 0;
  static const double coefficients[] = {1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,        1.0 / 720,
                                        1.0 / 5040,   1.0 / 40320,   1.0 / 362880,   1.0 / 3628800,    1.0 / 39916800.0,
                                        1.0 / 479001600.0, 1.0 / 6227020800.0};
  const int n = nearest(x * 0x1.71547652b82fep+0);   // 1/ln 2
  const double high = x - n * ln2_high;
  const double low = n * ln2_low;
  const double r = high - low;
  const double rest = (high - r) - low;
  const double result = 1 + (r + (r * r * polynomial(coefficients, r) + rest));
  // 2^n in two factors: n reaches beyond the range of one, and the second multiplication alone rounds to a subnormal.
  const int half = n / 2;
  return result * power_of_two(half) * power_of_two(n - half);
}

double log64(double x) {
  // 2 * atanh(s) = 2 * (s + s^3/3 + s^5/5 + ...)
  static const double coefficients[] = {2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                                        2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21, 2.0 / 23};
  const uint64_t bits = to_bits(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double mantissa = from_bits((bits & 0xfffffffffffff) | 0x3ff0000000000000);
  if (mantissa > 0x1.6a09e667f3bcdp+0) {   // sqrt 2: keeps the series' argument small on both sides of 1
    mantissa *= 0.5;
    ++exponent;
  }
  const double f = mantissa - 1;
  const double s = f / (2 + f);
  const double square = s * s;
  const double tail = square * polynomial(coefficients, square);
  // log(1 + f) = f - f*f/2 + s * (f*f/2 + tail): the exact f leads, so its rounding does not enter.
  const double half = 0.5 * f * f;
  return exponent * ln2_high - ((half - (s * (half + tail) + exponent * ln2_low)) - f);
}

double sin64(double x) {
  const Reduced r = reduce(x);
  const double magnitude = (r.quadrant & 1) ? cosine_near_zero(r) : sine_near_zero(r);
  return (r.quadrant & 2) ? -magnitude : magnitude;
}

double cos64(double x) {
  const Reduced r = reduce(x);
  const double magnitude = (r.quadrant & 1) ? sine_near_zero(r) : cosine_near_zero(r);
  return ((r.quadrant + 1) & 2) ? -magnitude : magnitude;
}

}  // namespace mdrt
