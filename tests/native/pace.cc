// The length of a slice follows the machine's speed, however far off the first guess was.
#include <cstdio>
#include <cstdlib>

#include "model.h"

using namespace mdrt;

namespace {

constexpr double kSeconds = 0.05;

// Slices on a machine that makes so many multiply-adds a second: how long the last one takes.
double settle(Pace* pace, double macs_per_second, int slices) {
  double seconds = 0;
  for (int i = 0; i < slices; ++i) {
    const double macs = static_cast<double>(pace->slice_macs());
    seconds = macs / macs_per_second;
    pace->measured(macs, seconds);
  }
  return seconds;
}

void require(bool holds, double macs_per_second, double seconds) {
  if (holds) return;
  fprintf(stderr, "pace: at %g multiply-adds a second a slice takes %g s\n", macs_per_second, seconds);
  exit(1);
}

}  // namespace

int main() {
  Pace pace;
  for (double macs_per_second : {450e9, 1e9, 30e9}) {
    const double seconds = settle(&pace, macs_per_second, 30);
    require(seconds > 0.8 * kSeconds && seconds < 1.25 * kSeconds, macs_per_second, seconds);
  }
  printf("pace: slices of %g s at three speeds\n", kSeconds);
  return 0;
}
