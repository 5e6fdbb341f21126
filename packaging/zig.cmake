# Builds a wheel's libraries with zig, for the processor and the Python that packaging/wheels names in the environment.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{MDRT_WHEEL_ARCHITECTURE})
set(CMAKE_CXX_COMPILER ${CMAKE_CURRENT_LIST_DIR}/zig-c++)
set(CMAKE_CXX_COMPILER_TARGET $ENV{MDRT_WHEEL_ARCHITECTURE}-linux-gnu.$ENV{MDRT_WHEEL_GLIBC})
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)
set(CMAKE_MODULE_LINKER_FLAGS_INIT -s)
# CMake's own trials are not linked: zig compiles a whole standard library before it links anything unoptimised.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

# What pybind11 would ask an interpreter; the one at hand is another.
set(PYBIND11_USE_CROSSCOMPILING ON)
set(PYTHON_IS_DEBUG OFF)
set(PYTHON_MODULE_DEBUG_POSTFIX "")
set(PYTHON_MODULE_EXTENSION $ENV{MDRT_WHEEL_SUFFIX})
