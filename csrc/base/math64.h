// Double-precision functions with the same bits on every platform: libm differs between platforms, so nothing that
// must be reproducible (noise, timestep embeddings) may call it. Errors stay below 1 ulp on the stated ranges.
#pragma once

namespace mdrt {

double exp64(double x);   // any x; 0 below -745.2, infinity above 709.8
double log64(double x);   // x positive and normal
double sin64(double x);   // |x| <= 1e6, NaN beyond
double cos64(double x);   // |x| <= 1e6, NaN beyond

}  // namespace mdrt
