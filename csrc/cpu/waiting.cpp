// How long idle OpenMP threads spin before they sleep, changed in a process whose runtime has
// already read its environment variables (sitenet/system/waiting.py sets those in time if it can).
//
// LLVM's runtime has a function for it. GNU's has none, but spins 100 times instead of 300,000 as
// soon as its teams hold more threads than there are cores. So a thread of ours starts a team of
// one thread per core and sleeps for good, as does its team.
#include "waiting.h"

#ifdef _OPENMP
#include <omp.h>
#ifndef KMP_VERSION_MAJOR // GNU's runtime, which runs on POSIX systems only
#include <csignal>
#include <thread>
#include <unistd.h>
#endif
#endif

namespace sitenet {

void shorten_waiting() {
#if !defined(_OPENMP)
    // no threads of ours wait
#elif defined(KMP_VERSION_MAJOR)
    kmp_set_blocktime(0);
#else
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); // the new threads leave signals to the others
    std::thread([] {
        int started = 0;
#pragma omp parallel num_threads(omp_get_num_procs()) reduction(+ : started)
        ++started;
        while (started)
            pause();
    }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
}

} // namespace sitenet
