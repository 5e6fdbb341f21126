// The functions of base/math64.h against the C library in long double: at most 1 ulp everywhere in their ranges.
#include "base/math64.h"

#include <cmath>
#include <cstdio>
#include <random>

namespace {

struct Case {
  const char* name;
  double (*function)(double);
  long double (*reference)(long double);
  double low, high;
  bool exponential;   // arguments e^x for x in [low, high]
};

double ulps(double got, long double want) {
  const double rounded = std::fabs(static_cast<double>(want));
  const double ulp = std::nextafter(rounded, HUGE_VAL) - rounded;
  return static_cast<double>(std::fabs(static_cast<long double>(got) - want) / ulp);
}

int run(const Case& test) {
  std::mt19937_64 random(1);
  double worst = 0, worst_at = 0;
  for (int i = 0; i < 300000; ++i) {
    const double share = static_cast<double>(random() >> 11) * 0x1p-53;
    const double at = test.low + share * (test.high - test.low);
    const double x = test.exponential ? std::exp(at) : at;
    const double error = ulps(test.function(x), test.reference(x));
    if (!(error <= worst)) worst = error, worst_at = x;
  }
  const bool passed = worst <= 1;
  printf("%s %s [%g, %g]: %.3f ulp at %.17g\n", passed ? "ok" : "FAILED", test.name, test.low, test.high, worst,
         worst_at);
  return passed ? 0 : 1;
}

int check(const char* what, bool passed) {
  if (!passed) printf("FAILED %s\n", what);
  return passed ? 0 : 1;
}

}  // namespace

int main() {
  const Case cases[] = {
      {"exp", mdrt::exp64, std::exp, -745, 709.7, false}, {"exp", mdrt::exp64, std::exp, -1, 1, false},
      {"log", mdrt::log64, std::log, -700, 700, true},    {"log", mdrt::log64, std::log, 0.5, 2, false},
      {"log", mdrt::log64, std::log, -1e-6, 1e-6, true},  {"sin", mdrt::sin64, std::sin, -1e6, 1e6, false},
      {"sin", mdrt::sin64, std::sin, -7, 7, false},       {"cos", mdrt::cos64, std::cos, -1e6, 1e6, false},
      {"cos", mdrt::cos64, std::cos, -7, 7, false},
  };
  int failures = 0;
  for (const Case& test : cases) failures += run(test);
  // Closest to the zeros, where the reduction cancels most.
  double worst = 0;
  for (int n = 1; n < 600000; n += 7) {
    const double x = n * 1.57079632679489661923;
    worst = std::fmax(worst, std::fmax(ulps(mdrt::sin64(x), std::sin(static_cast<long double>(x))),
                                       ulps(mdrt::cos64(x), std::cos(static_cast<long double>(x)))));
  }
  printf("multiples of pi/2: %.3f ulp\n", worst);
  failures += check("multiples of pi/2", worst <= 1);
  failures += check("exp(0)", mdrt::exp64(0) == 1);
  failures += check("exp of large numbers", mdrt::exp64(710) == HUGE_VAL && mdrt::exp64(-746) == 0);
  failures += check("exp of infinities", mdrt::exp64(HUGE_VAL) == HUGE_VAL && mdrt::exp64(-HUGE_VAL) == 0);
  failures += check("log(1)", mdrt::log64(1) == 0);
  failures += check("exp of no number", std::isnan(mdrt::exp64(NAN)));
  failures += check("sin and cos out of range", std::isnan(mdrt::sin64(NAN)) && std::isnan(mdrt::cos64(HUGE_VAL)));
  return failures != 0;
}
