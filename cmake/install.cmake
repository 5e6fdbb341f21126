# libmdrt for programs in C and C++: library, header, pkg-config file and CMake package; no Python.
include(CMakePackageConfigHelpers)

set_target_properties(mdrt PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0)
install(TARGETS mdrt EXPORT mdrt LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES csrc/include/mdrt.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mdrt)
install(EXPORT mdrt NAMESPACE mdrt:: FILE mdrt-config.cmake DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mdrt-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mdrt-config-version.cmake DESTINATION ${package_dir})

# The prefix is known for certain only at installation (cmake --install --prefix): the file finds it from its own place.
file(RELATIVE_PATH up_to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" up_to_prefix ${up_to_prefix})
configure_file(cmake/mdrt.pc.in mdrt.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/mdrt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
