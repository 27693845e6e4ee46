# For find_package(@NAME@ CONFIG): the target eecompile::@NAME@, and @NAME@_DATA, what ee_open opens.
set(@NAME@_DATA "${CMAKE_CURRENT_LIST_DIR}/@NAME@.eec")
if(NOT TARGET eecompile::@NAME@)
    add_library(eecompile::@NAME@ SHARED IMPORTED)
    set_target_properties(eecompile::@NAME@ PROPERTIES
        IMPORTED_LOCATION "${CMAKE_CURRENT_LIST_DIR}/@LIBRARY@"
        IMPORTED_SONAME "@LIBRARY@"
        INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}")
endif()
