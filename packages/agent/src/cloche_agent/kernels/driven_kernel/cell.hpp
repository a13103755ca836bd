// What every cell of C++ is compiled with: how it is run, how its last value is shown. See cpp.py.
//
// Cells are shared objects in one process. All that lasts is `inline`: such a variable is one object in the whole
// process, whichever cell was compiled with it, and is initialised once.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cxxabi.h>
#include <exception>
#include <iostream>
#include <pthread.h>
#include <sstream>
#include <string>
#include <string_view>
#include <typeinfo>
#include <ucontext.h>

namespace cloche {

struct Run {
    sigjmp_buf back;
    volatile sig_atomic_t is_running = 0;
    pthread_t thread;
    const unsigned char *library_begin, *library_end;
    int spared;
    int reached;
    bool has_value;
    std::string value, error_name, error_value;
};
inline Run run;

enum Outcome { finished = 0, failed = 1, interrupted = 2 };

// --- values

struct Nothing {};
// A value, followed by a comma and Nothing, is itself; where there is none, the built-in comma leaves Nothing.
template <class T> T &&operator,(T &&value, Nothing) { return static_cast<T &&>(value); }

inline std::string name_of(const std::type_info &type) {
    int status = 0;
    char *text = abi::__cxa_demangle(type.name(), nullptr, nullptr, &status);
    std::string name = status == 0 ? text : type.name();
    std::free(text);
    for (std::size_t at; (at = name.find("cell_")) != std::string::npos;) {
        std::size_t end = name.find("::", at);
        if (end == std::string::npos) break;
        name.erase(at, end + 2 - at);
    }
    return name;
}

template <class T> void put(std::ostream &out, const T &value, bool is_inner) {
    if constexpr (std::is_same_v<T, bool>)
        out << (value ? "true" : "false");
    else if constexpr (std::is_convertible_v<const T &, std::string_view>)
        is_inner ? out << '"' << std::string_view(value) << '"' : out << std::string_view(value);
    else if constexpr (requires { out << value; })
        out << value;
    else if constexpr (requires { value.begin() != value.end(); }) {
        out << '{';
        const char *between = "";
        for (const auto &item : value) {
            out << between;
            put(out, item, true);
            between = ", ";
        }
        out << '}';
    } else if constexpr (requires { value.first, value.second; }) {
        out << '(';
        put(out, value.first, true);
        out << ", ";
        put(out, value.second, true);
        out << ')';
    } else
        out << '<' << name_of(typeid(T)) << '>';
}

inline void show(const Nothing &) {}
inline void show(const std::ios_base &) {}
template <class T>
    requires(!std::is_base_of_v<std::ios_base, T>)
void show(const T &value) {
    std::ostringstream out;
    put(out, value, false);
    run.value = out.str();
    run.has_value = true;
}

// --- runs

// Called after each part of a cell, so that what was not reached is forgotten.
inline int reach(int part) { return run.reached = part; }

inline int end_of_main(int status) {
    if (status != 0) throw status;
    return 0;
}

inline bool is_within_library(const void *context) {
    const auto &machine = static_cast<const ucontext_t *>(context)->uc_mcontext;
#if defined(__x86_64__)
    auto at = reinterpret_cast<const unsigned char *>(machine.gregs[REG_RIP]);
    bool is_system_call = at[-2] == 0x0f && at[-1] == 0x05;
#elif defined(__aarch64__)
    auto at = reinterpret_cast<const unsigned char *>(machine.pc);
    bool is_system_call = reinterpret_cast<const unsigned *>(at)[-1] == 0xd4000001;
#endif
    return at >= run.library_begin && at < run.library_end && !is_system_call;
}

// Ends the cell by a jump. In the C library, which may hold the lock of its heap just now, it is let on a few
// times: the agent repeats the signal.
inline void on_interrupt(int number, siginfo_t *, void *context) {
    if (!pthread_equal(pthread_self(), run.thread)) {
        pthread_kill(run.thread, number);
    } else if (run.is_running && !(is_within_library(context) && run.spared++ < 5)) {
        run.is_running = 0;
        siglongjmp(run.back, 1);
    }
}

inline Outcome failure(const std::string &name, const std::string &value) {
    run.error_name = name;
    run.error_value = value;
    return failed;
}

inline Outcome guarded(void (**part)(), void (**end)()) {
    if (sigsetjmp(run.back, 1)) return interrupted;
    run.is_running = 1;
    try {
        for (; part != end; ++part) (*part)();
    } catch (const std::exception &error) {
        return failure(name_of(typeid(error)), error.what());
    } catch (int status) {
        return failure("int", std::to_string(status));
    } catch (const char *text) {
        return failure("const char*", text);
    } catch (const std::string &text) {
        return failure("std::string", text);
    } catch (abi::__forced_unwind &) {
        throw;
    } catch (...) {
        return failure(name_of(*abi::__cxa_current_exception_type()), "");
    }
    return finished;
}

inline int execute(void (**part)(), void (**end)(), const void *library_begin, const void *library_end) {
    static const bool is_by_line = (std::setvbuf(stdout, nullptr, _IOLBF, 1 << 16), true);
    (void)is_by_line;
    run.thread = pthread_self();
    run.library_begin = static_cast<const unsigned char *>(library_begin);
    run.library_end = static_cast<const unsigned char *>(library_end);
    run.spared = run.reached = 0;
    run.has_value = false;
    std::cout.clear(); // an error in an earlier cell must not silence this one
    std::cerr.clear();
    struct sigaction ours = {}, before;
    ours.sa_sigaction = on_interrupt;
    ours.sa_flags = SA_SIGINFO;
    sigaction(SIGINT, &ours, &before);
    Outcome outcome = guarded(part, end);
    run.is_running = 0;
    sigaction(SIGINT, &before, nullptr);
    std::cout.flush();
    std::cerr.flush();
    std::fflush(nullptr);
    return outcome;
}

} // namespace cloche

// --- what the kernel calls

extern "C" {
// The cell's own initialisers, in the order they are written in: no loader runs them under its lock.
extern void (*__start_cloche_parts[])() __attribute__((weak, visibility("hidden")));
extern void (*__stop_cloche_parts[])() __attribute__((weak, visibility("hidden")));

int cloche_execute(const void *library_begin, const void *library_end) {
    return cloche::execute(__start_cloche_parts, __stop_cloche_parts, library_begin, library_end);
}
int cloche_reached() { return cloche::run.reached; }
const char *cloche_value() { return cloche::run.has_value ? cloche::run.value.c_str() : nullptr; }
const char *cloche_error_name() { return cloche::run.error_name.c_str(); }
const char *cloche_error_value() { return cloche::run.error_value.c_str(); }
}
