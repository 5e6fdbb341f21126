# The instruction sets, worst first: name | architectures | compiler flags | CPU features needed at run time.
# The features are spelled as in csrc/base/cpu.cc.
set(MDRT_ISA_ROWS
  "generic|any||"
  "avx2|x86_64|-mavx2 -mfma -mf16c|avx2 fma f16c"
  "avxvnni|x86_64|-mavx2 -mfma -mf16c -mavxvnni|avx2 fma f16c avxvnni"
  "avx512|x86_64|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512|avx512f avx512bw avx512vl avx512dq fma f16c"
  "avx512vnni|x86_64|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512|avx512f avx512bw avx512vl avx512dq avx512vnni fma f16c"
  "amx|x86_64|-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mamx-tile -mamx-int8 -mfma -mf16c -mprefer-vector-width=512|avx512f avx512bw avx512vl avx512dq avx512vnni amxint8 fma f16c"
  "neon|aarch64||neon"
  "neondot|aarch64|-march=armv8.2-a+fp16+dotprod|neon fp16 dotprod"
  "neoni8mm|aarch64|-march=armv8.2-a+fp16+dotprod+i8mm|neon fp16 dotprod i8mm"
)

# The compiler knows what it compiles for; the kernel need not agree (a 64-bit kernel under 32-bit Raspberry Pi OS).
include(CheckCXXSymbolExists)
check_cxx_symbol_exists(__x86_64__ "" MDRT_FOR_X86_64)
check_cxx_symbol_exists(__aarch64__ "" MDRT_FOR_AARCH64)
if(MDRT_FOR_X86_64)
  set(MDRT_ARCHITECTURE x86_64)
elseif(MDRT_FOR_AARCH64)
  set(MDRT_ARCHITECTURE aarch64)
else()
  set(MDRT_ARCHITECTURE other)
endif()

# Kernels are compiled once per row: contraction to FMA is wanted, reordering of sums is not.
set(MDRT_KERNEL_FLAGS -O3 -fno-lto -ffp-contract=fast -fno-math-errno -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # The intrinsics' headers of gcc 12 trip over their own undefined registers.
  list(APPEND MDRT_KERNEL_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
  if(MDRT_SANITIZE)
    list(APPEND MDRT_KERNEL_FLAGS -fno-tree-vrp)   # it takes minutes over a sanitizer's checks in unrolled loops
  endif()
  if(MDRT_ARCHITECTURE STREQUAL "aarch64")
    list(APPEND MDRT_KERNEL_FLAGS -fno-schedule-insns)   # else gcc spills the register tile
  endif()
endif()

# Adds one object library per row of this architecture to `target`, names their objects in MDRT_ISA_OBJECTS, and writes the
# list that registry.cc includes.
function(mdrt_add_isa_units target)
  set(list "")
  set(objects "")
  foreach(row IN LISTS MDRT_ISA_ROWS)
    string(REPLACE "|" ";" fields "${row}")
    list(GET fields 0 name)
    list(GET fields 1 architecture)
    list(GET fields 2 flags)
    list(GET fields 3 features)
    if(NOT architecture STREQUAL "any" AND NOT architecture STREQUAL MDRT_ARCHITECTURE)
      continue()
    endif()
    separate_arguments(flags)
    add_library(mdrt_isa_${name} OBJECT ${PROJECT_SOURCE_DIR}/csrc/isa_unit.cc)
    target_include_directories(mdrt_isa_${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
    target_compile_definitions(mdrt_isa_${name} PRIVATE MDRT_ISA_NAME=${name})
    target_compile_options(mdrt_isa_${name} PRIVATE ${MDRT_KERNEL_FLAGS} ${flags})
    list(APPEND objects $<TARGET_OBJECTS:mdrt_isa_${name}>)
    string(JOIN " " all_flags ${MDRT_KERNEL_FLAGS} ${flags})
    string(APPEND list "MDRT_ISA(${name}, \"${features}\", \"${all_flags}\")\n")
  endforeach()
  target_sources(${target} PRIVATE ${objects})
  set(MDRT_ISA_OBJECTS ${objects} PARENT_SCOPE)
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/mdrt_isa_list.inc CONTENT "${list}")
endfunction()
