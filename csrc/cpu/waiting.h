#pragma once

namespace sitenet {

// Let idle OpenMP threads of this process sleep almost at once. Call once.
void shorten_waiting();

} // namespace sitenet
