// How long each step of a component's plan takes.
#pragma once

#include <string>
#include <vector>

#include "component.h"
#include "plan.h"

namespace mdrt {

struct StepProfile {
  const Step* step;               // of the component's plan; valid until it is planned again
  std::vector<double> seconds;    // of every round
};

// Runs the component once to warm up and then `rounds` times, a clock between its steps. Throws Error.
std::vector<StepProfile> profile_component(Model& model, const Stop& stop, const std::string& component,
                                           const mdrt_tensor* inputs, int32_t num_inputs, int32_t rounds);

}  // namespace mdrt
