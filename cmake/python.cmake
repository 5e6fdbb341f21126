# The extension mdrt._core and, beside it in the package, the library and its header: what a wheel carries.
set(components Interpreter Development.Module)
if(CMAKE_CROSSCOMPILING)  # the interpreter at hand is not the one that the extension is for
  list(REMOVE_ITEM components Interpreter)
endif()
find_package(Python COMPONENTS ${components})
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "Python.h of ${Python_EXECUTABLE} was not found. Install it:\n  sudo apt install python3-dev")
endif()
find_package(pybind11 CONFIG REQUIRED)

file(GLOB MDRT_BINDINGS CONFIGURE_DEPENDS csrc/bind/*.cc)
pybind11_add_module(_core MODULE NO_EXTRAS ${MDRT_BINDINGS})
target_include_directories(_core PRIVATE csrc)
# Binding code is never hot; optimising it for speed takes four times as long to compile.
target_compile_options(_core PRIVATE -Os)
target_link_libraries(_core PRIVATE mdrt)
set_target_properties(_core PROPERTIES INSTALL_RPATH "$ORIGIN/lib")

# A wheel cannot hold symbolic links, so the library has no version in its file name here.
install(TARGETS _core LIBRARY DESTINATION mdrt)
install(TARGETS mdrt LIBRARY DESTINATION mdrt/lib)
install(FILES csrc/include/mdrt.h DESTINATION mdrt/include)
